use super::*;
use crate::engine::testing::ephemeral;
use crate::statement::EPHEMERAL_NAME;

/// Has `peer` trust the agent, which asks it.
fn befriend(agent: &mut Membership, peer: &mut Membership, unix: UnixTime) {
    let name = peer.member(unix).unwrap().name;
    agent
        .request(name, Scope::replies_only(), None, unix)
        .unwrap();
    deliver(agent, peer, unix);
    let name = agent.member(unix).unwrap().name;
    peer.approve(&name, Scope::Any, unix).unwrap();
    deliver(peer, agent, unix);
    agent.settle(unix).unwrap();
    deliver(agent, peer, unix);
}

fn names(of: &Membership, unix: UnixTime) -> Vec<String> {
    let trusted = of.trusted(unix).into_iter();
    trusted.map(|peer| peer.member.name.to_string()).collect()
}

/// K9: a job that left is gone at once, and the next one of its name is taken; what the first said holds no more.
#[test]
fn the_name_of_an_ephemeral_agent_that_left_is_free() {
    let (mut build, mut first) = (membership(10, "build"), ephemeral(11, "job"));
    befriend(&mut first, &mut build, NOW);
    assert_eq!(names(&build, NOW), ["job"]);
    let record = first.sign_record(vec![], NOW + SECOND).unwrap();
    let consent = build.received[&first.identity.did()].clone();
    let left = first.sign_farewell(NOW + 2 * SECOND).unwrap();

    let taken = build.take_record(left.text(), NOW + 2 * SECOND);

    assert_eq!(taken, Ok(Taken::Kept));
    assert!(build.trusted(NOW + 2 * SECOND).is_empty());
    assert!(build.records.is_empty() && build.given.is_empty() && build.received.is_empty());
    // A registry that means ill tells it again.
    assert!(build.take_record(record.text(), NOW + 3 * SECOND).is_err());
    drop(build.take_consent(consent.text(), NOW + 3 * SECOND));
    assert!(build.trusted(NOW + 3 * SECOND).is_empty());
    let mut second = ephemeral(12, "job");
    befriend(&mut second, &mut build, NOW + 4 * SECOND);
    assert_eq!(names(&build, NOW + 4 * SECOND), ["job"]);
}

/// One that waits for its answer and leaves waits no more.
#[test]
fn a_request_of_who_left_waits_no_more() {
    let (mut build, mut job) = (membership(10, "build"), ephemeral(11, "job"));
    job.request("build".parse().unwrap(), Scope::Any, None, NOW)
        .unwrap();
    deliver(&mut job, &mut build, NOW);
    assert_eq!(build.incoming.len(), 1);

    let left = job.sign_farewell(NOW + SECOND).unwrap();
    build.take_record(left.text(), NOW + SECOND).unwrap();

    assert!(build.incoming.is_empty() && build.records.is_empty());
}

/// P-014: leaving does not undo that a consent was taken back.
#[test]
fn a_consent_that_was_taken_back_stays_so() {
    let (mut build, mut job) = (membership(10, "build"), ephemeral(11, "job"));
    befriend(&mut job, &mut build, NOW);
    let before = build.given[&job.identity.did()].clone();
    build.revoke(&"job".parse().unwrap(), NOW + SECOND).unwrap();
    let left = job.sign_farewell(NOW + 2 * SECOND).unwrap();
    build.take_record(left.text(), NOW + 2 * SECOND).unwrap();

    drop(build.take_consent(before.text(), NOW + 3 * SECOND));
    deliver(&mut job, &mut build, NOW + 4 * SECOND);

    assert!(build.trusted(NOW + 4 * SECOND).is_empty());
}

/// A lasting agent keeps its name and the trust it has, whatever a registry passes on.
#[test]
fn a_lasting_agent_that_left_is_not_forgotten() {
    let (mut build, mut agent) = (membership(10, "build"), membership(11, "agent"));
    befriend(&mut agent, &mut build, NOW);
    let left = agent.sign_farewell(NOW + SECOND).unwrap();

    let taken = build.take_record(left.text(), NOW + SECOND);

    assert_eq!(taken, Ok(Taken::Known));
    assert_eq!(names(&build, NOW + SECOND), ["agent"]);
}

/// A job that was killed says nothing: its name is another's a day after it was last seen, and no sooner.
#[test]
fn the_name_of_an_ephemeral_agent_that_was_lost_is_free_a_day_later() {
    let (mut build, mut first) = (membership(10, "build"), ephemeral(11, "job"));
    befriend(&mut first, &mut build, NOW);
    let mut second = ephemeral(12, "job");
    let mut ask = |build: &mut Membership, unix| {
        second
            .request("build".parse().unwrap(), Scope::Any, None, unix)
            .unwrap();
        let Some(Outgoing::Request(request)) = second.outbox.pop_back() else {
            panic!("it asks");
        };
        build.take_request(request.text(), unix)
    };

    let held = Err(Refused::NameHeld("job".parse().unwrap()));
    assert_eq!(ask(&mut build, NOW + EPHEMERAL_NAME), held);
    let later = NOW + EPHEMERAL_NAME + 2 * SECOND;
    assert_eq!(ask(&mut build, later), Ok(Taken::Pending));
    assert!(build.trusted(later).is_empty(), "the first is forgotten");
}
