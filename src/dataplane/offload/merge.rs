use std::ops::Range;

use crate::dataplane::offload::checksum;
use crate::dataplane::offload::header::{Gso, VIRTIO, VirtioHeader};
use crate::id::OverlayIp;
use crate::wire::ip::IPV6_HEADER;

/// Longest super-packet: what an IPv6 length field says, and what the kernel takes.
const MAX_LENGTH: usize = 65_535;

/// Packets of one super-packet; each is a part of one write.
const MAX_PACKETS: usize = 64;

/// Runs that wait; more flows than this in one burst are not worth merging.
const MAX_RUNS: usize = 64;

/// How far back a packet's run is looked for.
const LOOK_BACK: usize = 8;

const TCP: u8 = 6;
const UDP: u8 = 17;

const PSH: u8 = 0x08;
const ACK: u8 = 0x10;

/// Which packets a device takes merged.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(in crate::dataplane) struct Takes {
    pub(in crate::dataplane) tcp: bool,
    pub(in crate::dataplane) udp: bool,
}

/// Packets of one flow that follow each other, as places in the buffer they arrived in.
#[derive(Debug)]
pub(in crate::dataplane) struct Run {
    pub(in crate::dataplane) local: OverlayIp,
    /// The first packet, whole.
    first: Range<usize>,
    /// Payloads of the others.
    rest: Vec<Range<usize>>,
    /// None for a packet that stands alone.
    open: Option<Open>,
}

/// What the next packet of a run must be like.
#[derive(Clone, Copy, Debug)]
struct Open {
    gso: Gso,
    /// Where the payload begins in each packet.
    payload: usize,
    /// Payload of the first.
    size: usize,
    /// Bytes of the super-packet so far.
    length: usize,
    /// Sequence number of the next; 0 for UDP.
    next: u32,
    /// Whether the last one was shorter or pushed, so that none may follow.
    is_over: bool,
    has_push: bool,
}

/// Collects packets for TUNs in order, and those of one flow together.
#[derive(Debug, Default)]
pub(in crate::dataplane) struct Merger {
    runs: Vec<Run>,
    /// Emptied lists, so that nothing is allocated again.
    spare: Vec<Vec<Range<usize>>>,
}

impl Merger {
    /// Tells whether no more packets are to be added before [`Merger::drain`].
    pub(in crate::dataplane) fn is_full(&self) -> bool {
        self.runs.len() >= MAX_RUNS
    }

    /// Adds the packet at `place` of `buffer`; the device tells which ones it takes merged.
    pub(in crate::dataplane) fn add(
        &mut self,
        local: OverlayIp,
        buffer: &[u8],
        place: Range<usize>,
        takes: Takes,
    ) {
        let packet = buffer.get(place.clone()).unwrap_or_default();
        let is_taken = match packet.get(6) {
            Some(&TCP) => takes.tcp,
            Some(&UDP) => takes.udp,
            Some(_) | None => false,
        };
        let open = Some(packet).filter(|_| is_taken).and_then(Open::of);
        if let Some(open) = &open {
            // The last run of the flow or none, or its packets would overtake each other.
            let same = |run: &&mut Run| run.local == local && run.is_of_flow(buffer, packet, open);
            let mut runs = self.runs.iter_mut().rev().take(LOOK_BACK);
            if let Some(run) = runs.find(same)
                && run.append(buffer, place.clone(), open)
            {
                return;
            }
        }
        let rest = self.spare.pop().unwrap_or_default();
        self.runs.push(Run {
            local,
            first: place,
            rest,
            open,
        });
    }

    /// Takes out all runs in order.
    pub(in crate::dataplane) fn drain(&mut self, mut each: impl FnMut(&Run)) {
        for mut run in self.runs.drain(..) {
            each(&run);
            run.rest.clear();
            self.spare.push(run.rest);
        }
    }
}

impl Open {
    /// Reads a packet that others may be merged with; None for one that stands alone.
    fn of(packet: &[u8]) -> Option<Self> {
        let next_header = *packet.get(6)?;
        let transport = packet.get(IPV6_HEADER..)?;
        let (gso, length, next, flags) = match next_header {
            TCP => {
                let length = usize::from(*transport.get(12)? >> 4) * 4;
                let sequence = u32::from_be_bytes(*transport.get(4..)?.first_chunk()?);
                (Gso::Tcp, length, sequence, *transport.get(13)?)
            }
            UDP => (Gso::Udp, 8, 0, ACK),
            _ => return None,
        };
        let size = transport.len().checked_sub(length).filter(|n| *n > 0)?;
        let is_plain = flags & !PSH == ACK && (gso == Gso::Udp || length >= 20);
        // A datagram without checksum would get one.
        let has_sum = gso == Gso::Tcp || transport.get(6..8)? != [0, 0];
        if !is_plain || !has_sum || !checksum::holds(packet, next_header, transport) {
            return None;
        }
        let counted = u32::try_from(size).ok().filter(|_| gso == Gso::Tcp);
        let has_push = flags & PSH != 0;
        Some(Self {
            gso,
            payload: IPV6_HEADER + length,
            size,
            length: packet.len(),
            next: next.wrapping_add(counted.unwrap_or(0)),
            is_over: has_push,
            has_push,
        })
    }
}

impl Run {
    /// Returns how many packets it stands for.
    pub(in crate::dataplane) fn packets(&self) -> usize {
        1 + self.rest.len()
    }

    /// Returns how many bytes its packets had, apart.
    pub(in crate::dataplane) fn bytes(&self) -> usize {
        let headers = self.open.map_or(0, |open| open.payload);
        let rest = self.rest.iter().map(|part| part.len() + headers);
        self.first.len() + rest.sum::<usize>()
    }

    /// Makes the first packet in `buffer` the head of the super-packet, and returns what stands before
    /// it; the parts of the whole are [`Run::parts`].
    pub(in crate::dataplane) fn head(&self, buffer: &mut [u8]) -> [u8; VIRTIO] {
        let made = self.open.filter(|_| !self.rest.is_empty());
        made.and_then(|open| open.head(buffer.get_mut(self.first.clone())?))
            .unwrap_or_default()
            .encode()
    }

    /// Returns what is written in one piece, in order.
    pub(in crate::dataplane) fn parts<'a>(
        &'a self,
        buffer: &'a [u8],
    ) -> impl Iterator<Item = &'a [u8]> {
        let places = std::iter::once(&self.first).chain(&self.rest);
        places.map(|place| buffer.get(place.clone()).unwrap_or_default())
    }

    /// Tells whether a packet has the addresses and ports of this run, whatever else it says.
    fn is_of_flow(&self, buffer: &[u8], packet: &[u8], open: &Open) -> bool {
        let Some(ours) = buffer.get(self.first.clone()) else {
            return false;
        };
        let same = |range: Range<usize>| ours.get(range.clone()) == packet.get(range);
        // Next header, addresses, ports.
        same(6..7) && same(8..44) && self.open.is_none_or(|ours| ours.gso == open.gso)
    }

    /// Adds a packet of this flow; false when it does not follow seamlessly.
    fn append(&mut self, buffer: &[u8], place: Range<usize>, other: &Open) -> bool {
        let Some(open) = &mut self.open else {
            return false;
        };
        let (Some(ours), Some(packet)) =
            (buffer.get(self.first.clone()), buffer.get(place.clone()))
        else {
            return false;
        };
        let begins = other
            .next
            .wrapping_sub(u32::try_from(other.size).unwrap_or(0));
        let follows = match open.gso {
            Gso::Tcp => open.next == begins,
            Gso::Udp => true,
            Gso::None => false,
        };
        let fits = self.rest.len() + 1 < MAX_PACKETS && open.length + other.size <= MAX_LENGTH;
        let is_like = !open.is_over && other.size <= open.size && open.payload == other.payload;
        if !(follows && fits && is_like && same_headers(open.gso, ours, packet, open.payload)) {
            return false;
        }
        open.length += other.size;
        open.next = other.next;
        open.has_push |= other.has_push;
        open.is_over = other.has_push || other.size < open.size;
        self.rest.push(place.start + open.payload..place.end);
        true
    }
}

impl Open {
    fn head(&self, packet: &mut [u8]) -> Option<VirtioHeader> {
        let length = self.length - IPV6_HEADER;
        *packet.get_mut(4..)?.first_chunk_mut()? = u16::try_from(length).ok()?.to_be_bytes();
        let (next_header, field) = match self.gso {
            Gso::None => return None,
            Gso::Tcp => (TCP, 16),
            Gso::Udp => (UDP, 6),
        };
        let sum = checksum::unfinished(packet, next_header, length);
        let transport = packet.get_mut(IPV6_HEADER..)?;
        if self.gso == Gso::Udp {
            *transport.get_mut(4..)?.first_chunk_mut()? = u16::try_from(length).ok()?.to_be_bytes();
        } else if self.has_push {
            *transport.get_mut(13)? |= PSH;
        }
        *transport.get_mut(field..)?.first_chunk_mut()? = sum;
        let payload = u16::try_from(self.payload).ok()?;
        let size = u16::try_from(self.size).ok()?;
        let start = IPV6_HEADER as u16;
        Some(VirtioHeader::super_packet(self.gso, start, payload, size))
    }
}

/// Compares what a super-packet says once for all its packets: traffic class and flow label, hop
/// limit, and of TCP acknowledgment, flags, window, urgent pointer and options.
fn same_headers(gso: Gso, ours: &[u8], theirs: &[u8], payload: usize) -> bool {
    let same = |range: Range<usize>| ours.get(range.clone()) == theirs.get(range);
    let t = IPV6_HEADER;
    let ip = same(0..4) && same(7..8);
    let flags = |packet: &[u8]| packet.get(t + 13).map(|flags| flags & !PSH);
    match gso {
        Gso::None => false,
        Gso::Tcp => {
            ip && same(t + 8..t + 13)
                && flags(ours) == flags(theirs)
                && same(t + 14..t + 16)
                && same(t + 18..payload)
        }
        Gso::Udp => ip,
    }
}
