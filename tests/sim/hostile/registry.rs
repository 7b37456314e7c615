//! An evil registry: it replays, forges, swaps keys, gives names to others, withholds and floods.

use std::collections::BTreeMap;
use std::time::Duration;

use agentnet::engine::Forwarded;
use agentnet::id::{IdentityKey, OverlayIp, TunnelKey, TunnelSecret};
use agentnet::os::clock;
use agentnet::statement::{
    Claims, Consent, ConsentState, Gateway, Head, Record, Request, Revocation, RevokedKey, Scope,
    Statement, issue,
};

use crate::hostile::{Ledger, SECOND};
use crate::pair::{OWNER, REGISTRY, World, key, membership, name, network, now};

const HOUR: Duration = Duration::from_secs(3600);

/// Who may talk to whom, about what, and with which keys.
type Trust = BTreeMap<(OverlayIp, OverlayIp), (TunnelKey, Vec<Scope>, [u8; 32])>;

/// Agents a, b, c and d; a and b trust each other, and what the registry forwards is recorded.
fn world() -> World {
    let mut world = World::new(61);
    for (name, n) in [("a", 10), ("b", 11), ("c", 12), ("d", 13)] {
        world.add(name, n);
    }
    world.trust("a", "b", "udp/8000");
    world
}

fn trust(world: &World) -> Trust {
    let mut all = Trust::new();
    for host in world.hosts.values() {
        let membership = host.engine.membership(host.local).unwrap();
        for peer in membership.trusted(now().unix) {
            let what = (peer.tunnel, peer.inbound, peer.psk);
            all.insert((host.local, peer.member.address), what);
        }
        let installed = host.engine.tables();
        assert!(
            installed
                .iter()
                .all(|(l, p, _)| all.contains_key(&(*l, *p)))
        );
    }
    all
}

/// Returns how many requests wait for a person at each host.
fn pending(world: &World) -> Vec<usize> {
    let hosts = world.hosts.values();
    let waiting = hosts.map(|h| h.engine.membership(h.local).unwrap().incoming.len());
    waiting.collect()
}

/// Gives one statement to one host; tells whether it was taken.
fn give(world: &mut World, to: &str, kind: Forwarded, text: &str) -> bool {
    let host = world.host(to);
    let taken = host.engine.handle_statement(host.local, kind, text, now());
    world.run();
    taken.is_ok()
}

/// Gives a a statement among many; what follows from all comes when the world runs again.
fn pour(world: &mut World, kind: Forwarded, text: &str) {
    let host = world.host("a");
    drop(host.engine.handle_statement(host.local, kind, text, now()));
}

fn sign<C: Claims>(by: &IdentityKey, of: &IdentityKey, claims: C) -> Statement<C> {
    let unix = clock::unix();
    let head = Head {
        subject: of.did(),
        network: Some(network()),
        issued: unix,
        expires: unix + HOUR,
        seq: unix.as_millis() + 1,
    };
    Statement::sign(by, head, claims).unwrap()
}

fn consent(state: ConsentState) -> Consent {
    Consent {
        inbound: Scope::Any,
        children: false,
        state,
        re: None,
    }
}

fn revocation(world: &World, of: &IdentityKey) -> Statement<Revocation> {
    let a = &world.hosts["a"];
    let chain = &a.engine.membership(a.local).unwrap().chain;
    let claims = Revocation {
        keys: vec![RevokedKey {
            key: of.did(),
            at: clock::unix(),
        }],
        grants: vec![],
        chain: vec![chain[0].clone()],
    };
    sign(&key(OWNER), &key(OWNER), claims)
}

/// P-014, P-015: whatever it ever carried, again, to everybody, in any order, over restarts.
#[test]
fn one_that_replays_all_it_ever_had_brings_nothing_back() {
    let mut world = world();
    world.trust("c", "a", "udp/7");
    world.trust("d", "a", "udp/7");
    world.change("b", |m, unix| {
        m.approve(&name("a"), "udp/9".parse().unwrap(), unix)
            .map(drop)
    });
    world.pass(SECOND);
    world.change("a", |m, unix| m.revoke(&name("c"), unix).map(drop));
    world.change("d", |m, unix| m.revoke(&name("a"), unix).map(drop));
    world.change("c", |m, unix| m.request(name("a"), Scope::Any, None, unix));
    world.change("a", |m, _| m.deny(&name("c")));
    world.pass(SECOND);
    let (before, waiting) = (trust(&world), pending(&world));
    assert_eq!(before.len(), 2, "a and b alone trust each other");
    let mail = world.mail.clone();
    assert!(mail.len() > 10, "{}", mail.len());
    world.has_registry = false;

    let orders: [fn(usize, usize) -> usize; 4] = [
        |n, _| n,
        |n, all| all - 1 - n,
        |n, all| (n * 7) % all,
        |n, all| (n * 3 + all / 2) % all,
    ];
    for order in orders {
        for to in ["a", "b", "c", "d"] {
            for n in 0..mail.len() {
                let (kind, text) = &mail[order(n, mail.len())];
                give(&mut world, to, *kind, text);
            }
            world.pass(SECOND);
        }
        assert_eq!(
            (trust(&world), pending(&world)),
            (before.clone(), waiting.clone())
        );
        for to in ["a", "b", "c", "d"] {
            world.restart(to);
        }
        assert_eq!(
            (trust(&world), pending(&world)),
            (before.clone(), waiting.clone())
        );
    }
    let mut ledger = Ledger::default();
    world.host("b").received.clear();
    ledger.talk(&mut world, &[("a", "b")], 1);
    let (sent, arrived) = ledger.talk(&mut world, &[("a", "b")], 5);
    assert_eq!(sent, arrived);
}

/// P-052: the key in a record, a consent and a chain is its agent's word or nobody's.
#[test]
fn one_that_swaps_keys_is_believed_by_nobody() {
    let mut world = world();
    world.has_registry = false;
    let before = trust(&world);
    let b = &world.hosts["b"];
    let chain = b.engine.membership(b.local).unwrap().chain.clone();
    let evil = TunnelSecret::from_seed([66; 32]).public();
    let claims = |chain: Vec<String>, name: &str| Record {
        name: name.parse().unwrap(),
        tunnel: evil,
        gateways: vec![],
        chain,
        ttl: 600,
    };
    // Chains that the registry, or another member, made for b's name.
    let own = |by: u8, of: u8| {
        let root = Statement::open(&chain[0]).unwrap();
        let (unix, to) = (clock::unix(), key(of).did());
        let grant = issue::agent_grant(&key(by), &root, to, &name("b"), unix, unix + HOUR);
        vec![chain[0].clone(), grant.unwrap().text().to_owned()]
    };
    let record = |by: u8, of: u8, chain| {
        let record = sign(&key(by), &key(of), claims(chain, "b"));
        record.text().to_owned()
    };
    let mut forged = vec![
        record(REGISTRY, 11, chain.clone()),
        record(12, 11, chain.clone()),
        record(12, 12, chain.clone()),
        record(REGISTRY, REGISTRY, own(REGISTRY, REGISTRY)),
        record(12, 12, own(12, 12)),
        record(12, 12, own(REGISTRY, 12)),
    ];
    // b's own record with other words under the same signature.
    let host = world.host("b");
    let good = host.engine.record(host.local, now()).unwrap();
    let bad = sign(&key(11), &key(11), claims(chain.clone(), "b"));
    let parts = |text: &str| text.split('.').map(str::to_owned).collect::<Vec<_>>();
    let (mut mixed, other) = (parts(good.text()), parts(bad.text()));
    mixed[1].clone_from(&other[1]);
    forged.push(mixed.join("."));

    for text in &forged {
        assert!(!give(&mut world, "a", Forwarded::Record, text));
    }
    for by in [REGISTRY, OWNER, 12] {
        let mut claims = consent(ConsentState::Revoked);
        claims.inbound = Scope::replies_only();
        // Signed by others, about b's consent to a: theirs at most, and of nobody a knows.
        let text = sign(&key(by), &key(10), claims);
        give(&mut world, "a", Forwarded::Consent, text.text());
    }
    assert_eq!(trust(&world), before);
}

/// A name is a key's; what was agreed with one key is nothing to the next that has the name.
#[test]
fn one_that_gives_a_removed_agents_name_to_another_key_passes_no_trust_on() {
    let mut world = world();
    let request = world.mail.iter().find_map(|(kind, text)| {
        let request = (*kind == Forwarded::Request).then(|| Statement::<Request>::open(text));
        request.map(|request| request.unwrap().hash())
    });
    let old = world.mail.clone();
    let removed = revocation(&world, &key(11));
    world.has_registry = false;
    assert!(give(&mut world, "a", Forwarded::Revocation, removed.text()));
    assert!(
        trust(&world)
            .keys()
            .all(|(local, _)| *local != world.local("a"))
    );

    world.hosts.remove("b");
    world.add_as("b", "b", 14);
    let host = world.host("b");
    let record = host.engine.record(host.local, now()).unwrap();
    let mut answer = consent(ConsentState::Active);
    answer.re = request;
    let answer = sign(&key(14), &key(10), answer);
    for _ in 0..2 {
        give(&mut world, "a", Forwarded::Consent, answer.text());
        give(&mut world, "a", Forwarded::Record, record.text());
        for (kind, text) in &old {
            give(&mut world, "a", *kind, text);
        }
        world.pass(SECOND);
        let a = world.host("a");
        let asked = "b.acme.agent";
        let asked = agentnet::id::FullName::parse(asked, &Default::default()).unwrap();
        assert_eq!(a.engine.by_name(a.local, &asked, now()), None);
        assert!(a.engine.tables().is_empty());
        let given = &a.engine.membership(a.local).unwrap().given;
        assert!(!given.contains_key(&key(14).did()));
        world.restart("a");
    }

    // Asked for anew and approved anew, it is trusted as itself.
    world.has_registry = true;
    world.trust("a", "b", "udp/8000");
    let a = world.host("a");
    let trusted = a.engine.membership(a.local).unwrap().trusted(now().unix);
    assert_eq!(trusted.len(), 1);
    assert_eq!(trusted[0].member.agent.did(), key(14).did());
}

fn stranger(n: u32) -> IdentityKey {
    let mut seed = [9; 32];
    seed[..4].copy_from_slice(&n.to_be_bytes());
    IdentityKey::from_seed(seed)
}

fn gateway(by: u8, of: &IdentityKey, udp: &str, region: Option<String>) -> Statement<Gateway> {
    let claims = Gateway {
        tunnel: TunnelSecret::from_seed([66; 32]).public(),
        udp: vec![udp.to_owned()],
        wss: vec![],
        region,
        features: vec![],
        ttl: 600,
    };
    let unix = clock::unix();
    let head = Head {
        subject: of.did(),
        network: None,
        issued: unix,
        expires: unix + HOUR,
        seq: unix.as_millis() + 1,
    };
    Statement::sign(&key(by), head, claims).unwrap()
}

/// Everything that a registry can make up by itself.
fn flood_of_strangers(world: &mut World) {
    for n in 0..100 {
        let text = sign(&stranger(n), &key(10), consent(ConsentState::Active));
        pour(world, Forwarded::Consent, text.text());
        let large = Some("x".repeat(9000));
        let text = gateway(REGISTRY, &stranger(n), "192.0.2.1:1", large);
        pour(world, Forwarded::Gateway, text.text());
    }
}

/// What it can with a token that makes members without number.
fn flood_of_members(world: &mut World) {
    for n in 0..270_u32 {
        let called = name(&format!("x{n}"));
        let mut member = membership(100, &called.to_string(), HOUR);
        member.identity = stranger(n);
        let (root, unix) = (Statement::open(&member.chain[0]).unwrap(), clock::unix());
        let own = member.identity.did();
        let grant = issue::agent_grant(&key(OWNER), &root, own, &called, unix, unix + HOUR);
        member.chain[1] = grant.unwrap().text().to_owned();
        let reason = Some("y".repeat(200));
        member.request(name("a"), Scope::Any, reason, unix).unwrap();
        let request = member.outgoing.values().next().unwrap();
        pour(world, Forwarded::Request, request.text());
        let claims = Revocation {
            keys: vec![RevokedKey {
                key: stranger(1000).did(),
                at: unix,
            }],
            grants: vec![],
            chain: member.chain.clone(),
        };
        let text = sign(&member.identity, &key(OWNER), claims);
        pour(world, Forwarded::Revocation, text.text());
    }
}

/// Statements without number: what is kept stays small, and what stood stands.
#[test]
fn one_that_floods_fills_neither_memory_nor_disk() {
    let mut world = world();
    world.has_registry = false;
    let before = trust(&world);

    flood_of_strangers(&mut world);
    flood_of_members(&mut world);
    world.run();

    let a = &world.hosts["a"];
    let kept = a.engine.membership(a.local).unwrap();
    let revoked = kept.revocations.statements().len();
    let sizes = [
        kept.received.len(),
        kept.gateways.len(),
        kept.incoming.len(),
    ];
    // One consent is b's; the others are of strangers.
    assert_eq!((sizes, revoked), ([65, 64, 256], 270));
    let written = a.state().len();
    assert!(written < 8 << 20, "{written} bytes");
    assert_eq!(trust(&world), before);
    world.restart("a");
    let mut ledger = Ledger::default();
    ledger.talk(&mut world, &[("a", "b")], 3);
    let (sent, arrived) = ledger.talk(&mut world, &[("a", "b")], 3);
    assert_eq!(sent, arrived);
}

/// Not one datagram goes to who is no gateway by the word of the registry or the domain root.
#[test]
fn one_that_names_a_gateway_of_a_foreign_signer_leads_nobody_there() {
    let mut world = world();
    for by in [OWNER, 12, 66] {
        let text = gateway(by, &key(66), "192.0.2.66:16201", None);
        assert!(!give(&mut world, "a", Forwarded::Gateway, text.text()));
    }
    world.pass(100 * SECOND);

    let a = &world.hosts["a"];
    let kept = &a.engine.membership(a.local).unwrap().gateways;
    assert!(!kept.contains_key(&key(66).did()));
    let there = "192.0.2.66:16201".parse().unwrap();
    assert!(world.wire.iter().all(|(_, to, _)| *to != there));
}
