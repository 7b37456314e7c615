//! What programs sent, and what became of it.

use std::{collections::BTreeMap, time::Instant};

use agentnet::id::OverlayIp;

use crate::pair::udp_between;
use crate::world::host::CLIENT;

/// A packet of a program.
#[derive(Clone, Debug)]
pub(crate) struct Said {
    pub(crate) from: usize,
    pub(crate) to: usize,
    /// The port it goes to, or (a reply) the one it comes from.
    pub(crate) port: u16,
    pub(crate) at: Instant,
    pub(crate) is_reply: bool,
    wants_reply: bool,
    pub(crate) deliveries: u32,
    /// What answers it; None until it is delivered.
    pub(crate) reply: Option<u64>,
    packet: Vec<u8>,
    addresses: (OverlayIp, OverlayIp),
}

/// A packet that a program got.
#[derive(Clone, Debug)]
pub(crate) struct Delivery {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) at: Instant,
    /// Which packet it is by its number; None when it is none that was sent.
    pub(crate) said: Option<u64>,
    /// Whether it is byte for byte what was sent.
    pub(crate) is_unchanged: bool,
}

/// All packets of programs.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    said: BTreeMap<u64, Said>,
    count: u64,
    /// What was delivered since it was last taken out.
    pub(crate) deliveries: Vec<Delivery>,
}

impl Ledger {
    /// Makes a packet to a port; returns its number.
    pub(crate) fn request(
        &mut self,
        (from, source): (usize, OverlayIp),
        (to, target): (usize, OverlayIp),
        port: u16,
        wants_reply: bool,
        at: Instant,
    ) -> u64 {
        self.count += 1;
        let payload = payload(self.count);
        let packet = udp_between((source, CLIENT), (target, port), &payload);
        let said = Said {
            from,
            to,
            port,
            at,
            is_reply: false,
            wants_reply,
            deliveries: 0,
            reply: None,
            packet,
            addresses: (source, target),
        };
        self.said.insert(self.count, said);
        self.count
    }

    pub(crate) fn packet(&self, said: u64) -> &[u8] {
        self.said.get(&said).map_or(&[], |said| &said.packet)
    }

    pub(crate) fn said(&self, said: u64) -> Option<&Said> {
        self.said.get(&said)
    }

    /// Tells whether a packet arrived, and its reply if it wants one.
    pub(crate) fn is_done(&self, said: u64) -> bool {
        let Some(said) = self.said.get(&said) else {
            return false;
        };
        let answered = said.reply.and_then(|reply| self.said.get(&reply));
        let is_answered = answered.is_some_and(|reply| reply.deliveries > 0);
        said.deliveries > 0 && (is_answered || !said.wants_reply)
    }

    /// Takes that a program got a packet; returns the reply that it sends, if any.
    pub(crate) fn delivered(
        &mut self,
        (from, to): (usize, usize),
        bytes: &[u8],
        at: Instant,
    ) -> Option<u64> {
        let number = bytes.get(48..).and_then(number_of);
        let said = number.and_then(|number| self.said.get_mut(&number));
        let is_unchanged = said
            .as_ref()
            .is_some_and(|said| said.packet == bytes && (said.from, said.to) == (from, to));
        self.deliveries.push(Delivery {
            from,
            to,
            at,
            said: number.filter(|_| said.is_some()),
            is_unchanged,
        });
        let said = said.filter(|_| is_unchanged)?;
        said.deliveries += 1;
        if !said.wants_reply || said.reply.is_some() {
            return None;
        }
        let (source, target) = said.addresses;
        let port = said.port;
        self.count += 1;
        said.reply = Some(self.count);
        let packet = udp_between((target, port), (source, CLIENT), &payload(self.count));
        let reply = Said {
            from: to,
            to: from,
            port,
            at,
            is_reply: true,
            wants_reply: false,
            deliveries: 0,
            reply: None,
            packet,
            addresses: (target, source),
        };
        self.said.insert(self.count, reply);
        Some(self.count)
    }

    /// Forgets packets of long ago; none of them may arrive any more.
    pub(crate) fn forget_before(&mut self, at: Instant) {
        self.said.retain(|_, said| said.at >= at);
    }
}

/// A payload of its number and some more, of a length that varies.
fn payload(number: u64) -> Vec<u8> {
    let filler = (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize;
    let mut payload = number.to_be_bytes().to_vec();
    payload.extend((0..filler).map(|at| (at as u64 ^ number).to_le_bytes()[0]));
    payload
}

fn number_of(payload: &[u8]) -> Option<u64> {
    payload
        .first_chunk()
        .map(|bytes| u64::from_be_bytes(*bytes))
}
