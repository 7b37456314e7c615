use std::{collections::BTreeMap, time::Instant};

use crate::policy::Pair;
use crate::wire::drop::Counters;

/// What the worker has seen and done since it started.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The newest tables it works by.
    pub epoch: u64,
    pub drops: Counters,
    /// Datagrams received from the underlay.
    pub udp_in: Traffic,
    /// Datagrams handed to the underlay.
    pub udp_out: Traffic,
    /// Packets of local programs that passed.
    pub tun_in: Traffic,
    /// Packets of peers delivered to local programs.
    pub tun_out: Traffic,
    /// When a packet of the pair was last delivered: the data plane's health as opposed to the
    /// control plane's.
    pub delivered: BTreeMap<Pair, Instant>,
}

/// Packets and bytes of one direction.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Traffic {
    pub packets: u64,
    pub bytes: u64,
}

impl Traffic {
    /// Counts one packet.
    pub(super) const fn count(&mut self, bytes: usize) {
        self.packets += 1;
        self.bytes += bytes as u64;
    }
}
