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

impl Snapshot {
    /// Adds what another worker counted; the tables all work by are the oldest any does.
    pub(super) fn merge(&mut self, other: &Self) {
        self.epoch = self.epoch.min(other.epoch);
        self.drops.merge(&other.drops);
        self.udp_in.merge(other.udp_in);
        self.udp_out.merge(other.udp_out);
        self.tun_in.merge(other.tun_in);
        self.tun_out.merge(other.tun_out);
        for (pair, at) in &other.delivered {
            let newest = self.delivered.entry(*pair).or_insert(*at);
            *newest = (*newest).max(*at);
        }
    }
}

/// Packets and bytes of one direction.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Traffic {
    pub packets: u64,
    pub bytes: u64,
}

impl Traffic {
    const fn merge(&mut self, other: Self) {
        self.packets = self.packets.saturating_add(other.packets);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }

    /// Counts one packet.
    pub(super) const fn count(&mut self, bytes: usize) {
        self.packets += 1;
        self.bytes += bytes as u64;
    }
}
