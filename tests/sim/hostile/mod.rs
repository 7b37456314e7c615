//! Each part of a deployment turned evil, against honest engines.

mod captured;
mod disk;
pub(crate) mod evil;
mod gateway;
mod peer;
mod reflect;
mod registry;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use agentnet::id::OverlayIp;

use crate::pair::{World, udp};

pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// What honest programs said to each other, against which everything that arrives is checked.
#[derive(Default)]
pub(crate) struct Ledger {
    /// What is on its way: from, to and the packet.
    said: BTreeSet<(OverlayIp, OverlayIp, Vec<u8>)>,
    count: u64,
}

impl Ledger {
    /// Lets each pair speak both ways five times a second; returns how many packets were sent, and
    /// how many arrived.
    ///
    /// What arrives must have been said, by the one it is from, to the one who got it, and once.
    pub(crate) fn talk(
        &mut self,
        world: &mut World,
        pairs: &[(&'static str, &'static str)],
        seconds: u32,
    ) -> (usize, usize) {
        let (mut sent, mut arrived) = (0, 0);
        for _ in 0..seconds * 5 {
            for (one, other) in pairs {
                for (from, to) in [(one, other), (other, one)] {
                    self.say(world, from, to);
                    sent += 1;
                }
            }
            world.pass(SECOND / 5);
            arrived += self.check(world);
        }
        (sent, arrived)
    }

    pub(crate) fn say(&mut self, world: &mut World, from: &str, to: &str) {
        self.count += 1;
        let payload = format!("{} from {from} to {to}", self.count);
        let (source, target) = (world.local(from), world.local(to));
        let packet = udp(source, target, payload.as_bytes());
        self.said.insert((source, target, packet));
        world.send(from, to, payload.as_bytes());
    }

    /// Checks what arrived since the last call, and returns how much.
    pub(crate) fn check(&mut self, world: &mut World) -> usize {
        let mut count = 0;
        for (name, host) in &mut world.hosts {
            for (from, packet) in std::mem::take(&mut host.received) {
                let told = (from, host.local, packet);
                assert!(self.said.remove(&told), "{name} got what nobody said");
                count += 1;
            }
        }
        count
    }
}

/// Returns how many datagrams each endpoint got since the wire was last cleared.
pub(crate) fn got(world: &World) -> BTreeMap<std::net::SocketAddr, usize> {
    let mut got = BTreeMap::new();
    for (_, to, _) in &world.wire {
        *got.entry(*to).or_default() += 1;
    }
    got
}

/// Returns how many datagrams `name` sent since the wire was last cleared.
pub(crate) fn sent_by(world: &World, name: &str) -> usize {
    let at = world.hosts[name].at;
    world.wire.iter().filter(|(from, ..)| *from == at).count()
}
