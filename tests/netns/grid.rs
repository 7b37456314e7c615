//! Every kind of network against every other: who connects, who directly, and how soon (docs/nat.md).

use std::{env, io::Read as _, net::TcpStream, thread, time::Duration};

use crate::{
    grid::deployment::{Deployment, Member, PORT},
    grid::home::{Kind, Way},
    world::{in_world, measured, now},
};

mod deployment;
mod home;

/// Set where pairs are to be measured one after the other (scripts/nat-grid).
const ALONE: &str = "AGENTNET_GRID_ALONE";

/// Longest wait for the first byte and for the direct path; this machine may be busy.
const CONNECT: Duration = Duration::from_secs(10);
const DIRECT: &str = "20s";

/// Of ten pairs whose ports must be guessed: fewer are found three times in a hundred thousand runs.
const LUCKY: usize = 7;

/// What one pair of networks came to.
struct Found {
    from: Kind,
    to: Kind,
    first: Result<Duration, String>,
    direct: Option<Duration>,
    said: String,
}

impl Found {
    /// Returns what is wrong with it; None when nothing is.
    fn fault(&self) -> Option<String> {
        let pair = format!("{} -> {}", self.from.name(), self.to.name());
        if let Err(error) = &self.first {
            return Some(format!("{pair}: does not connect: {error}"));
        }
        let must = self.from.way_to(self.to) == Way::Direct;
        (must && self.direct.is_none()).then(|| format!("{pair}: not direct: {}", self.said))
    }

    fn show(&self) -> String {
        let first = self.first.as_ref().map_or(0, Duration::as_millis);
        let direct = self.direct.map_or_else(
            || "relay".to_owned(),
            |after| format!("direct after {} ms", after.as_millis()),
        );
        let (from, to) = (self.from.name(), self.to.name());
        format!("nat {from} -> {to}: first byte {first} ms, {direct}")
    }
}

/// Connects, and waits for the direct path if there must be one.
fn meet(from: &Member, to: &Member) -> Found {
    let start = now();
    let first = from
        .home
        .host
        .enter(|| -> std::io::Result<()> {
            let mut stream = TcpStream::connect_timeout(&(to.address, PORT).into(), CONNECT)?;
            stream.set_read_timeout(Some(CONNECT))?;
            stream.read_exact(&mut [0])
        })
        .map(|()| start.elapsed())
        .map_err(|error| error.to_string());
    let patience = match from.home.kind.way_to(to.home.kind) {
        Way::Direct | Way::Guessed => DIRECT,
        Way::Relay => "1s",
    };
    let ask = format!(
        "exec agentnet ping {} --until-direct --interval 50ms --timeout {patience}",
        to.name
    );
    let said = from.home.host.start(&ask).finish(Duration::from_secs(40));
    let direct = (said.code == 0).then(|| start.elapsed());
    let said = if direct.is_none() && patience == DIRECT {
        // What each end knows of the other's endpoints and its own NAT.
        let tried = from.home.host.run(&format!("agentnet path {}", to.name));
        let [near, far] = [from, to].map(|end| end.home.host.run("agentnet status"));
        format!("{tried}{near}{far}")
    } else {
        String::new()
    };
    Found {
        from: from.home.kind,
        to: to.home.kind,
        first,
        direct,
        said,
    }
}

/// Issue 5 section 8: every pair connects, and directly wherever it must.
#[test]
fn every_kind_of_network_reaches_every_other() {
    in_world(|world| {
        let deployment = Deployment::new(world, &Kind::ALL);
        let members = deployment.members();
        let count = Kind::ALL.len();

        // In every round everybody talks to one peer only.
        let mut found = Vec::new();
        for round in 0..count {
            let pairs = (0..count).map(|n| (&members[n], &members[count + (n + round) % count]));
            if env::var_os(ALONE).is_some() {
                found.extend(pairs.map(|(from, to)| meet(from, to)));
            } else {
                thread::scope(|scope| {
                    let all = pairs.map(|(from, to)| scope.spawn(|| meet(from, to)));
                    let all = all.collect::<Vec<_>>();
                    found.extend(all.into_iter().map(|thread| thread.join().unwrap()));
                });
            }
        }

        for pair in &found {
            measured(&pair.show());
        }
        let faults = found.iter().filter_map(Found::fault).collect::<Vec<_>>();
        assert!(faults.is_empty(), "{}\n{}", faults.len(), faults.join("\n"));
        let guessed = found
            .iter()
            .filter(|pair| pair.from.way_to(pair.to) == Way::Guessed);
        let lucky = guessed.clone().filter(|pair| pair.direct.is_some()).count();
        assert!(lucky >= LUCKY, "{lucky} of {} guesses", guessed.count());
    });
}
