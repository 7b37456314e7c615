//! Pure: the data channels the worker seals and opens by, and what went through them.

use std::{collections::BTreeMap, ops::Range};

use crate::dataplane::aead::Library;
use crate::dataplane::crypt::{Opener, Sealer};
use crate::dataplane::relay::{Hops, Way};
use crate::engine::HopEvent;
use crate::engine::channel::{Arrival, ChannelChange, NewChannel, Passed, Route, Volume};
use crate::engine::hop::{MAX_HOPS, Slot};
use crate::policy::Pair;
use crate::wire::a2g;
use crate::wire::channel::parse;
use crate::wire::drop::DropReason;

/// What a packet was.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Opened {
    pub(super) pair: Pair,
    /// Where in the datagram the plain packet is.
    pub(super) place: Range<usize>,
    /// Our id of the channel if this is the first packet of it.
    pub(super) first: Option<u32>,
}

/// Why a packet in a frame did not open.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Unopened {
    Dropped(DropReason),
    /// The second of the pair, as the gateway says, uses a channel that is not known here.
    Stray(Pair),
}

/// All channels of the node.
#[derive(Debug)]
pub(super) struct Channels {
    library: Library,
    hops: Hops,
    incoming: BTreeMap<u32, Incoming>,
    outgoing: BTreeMap<Pair, Outgoing>,
    /// The largest packet that passes to a peer, of those of which it was told.
    mtus: BTreeMap<Pair, usize>,
    passed: BTreeMap<Pair, Passed>,
}

#[derive(Debug)]
struct Incoming {
    pair: Pair,
    opener: Opener,
    is_used: bool,
}

/// How packets to one peer are sealed, and where they go.
#[derive(Debug)]
struct Outgoing {
    /// By our id of the channel: the current one, and such as wait for their proof.
    sealers: BTreeMap<u32, Sealer>,
    sending: Option<u32>,
    route: Route,
}

impl Channels {
    /// Makes a table without channels, whose AES-256-GCM is done by `library`.
    pub(super) fn new(library: Library) -> Self {
        Self {
            library,
            hops: Hops::default(),
            incoming: BTreeMap::new(),
            outgoing: BTreeMap::new(),
            mtus: BTreeMap::new(),
            passed: BTreeMap::new(),
        }
    }

    /// Takes a change of the channels between `pair`.
    pub(super) fn change(&mut self, pair: Pair, change: ChannelChange) {
        match change {
            ChannelChange::New(new) => self.add(pair, &new),
            ChannelChange::Mtu(Some(mtu)) => {
                self.mtus.insert(pair, usize::from(mtu));
            }
            ChannelChange::Mtu(None) => {
                self.mtus.remove(&pair);
            }
            ChannelChange::Route(route) => {
                if let Some(outgoing) = self.outgoing.get_mut(&pair) {
                    outgoing.route = route;
                }
            }
            ChannelChange::Send(id) => {
                if let Some(outgoing) = self.outgoing.get_mut(&pair) {
                    outgoing.sending = Some(id);
                    // The keys before it seal nothing any more.
                    outgoing.sealers.retain(|kept, _| *kept == id);
                }
            }
            ChannelChange::End(id) => self.end(pair, id),
        }
    }

    /// Takes what a hop of an agent is from now on.
    pub(super) fn change_hop(&mut self, event: HopEvent) {
        self.hops.change(event);
    }

    fn add(&mut self, pair: Pair, new: &NewChannel) {
        let opener = Opener::new(new.suite, &new.open, self.library);
        let sealer = Sealer::new(new.suite, &new.seal, new.remote, self.library);
        let incoming = Incoming {
            pair,
            opener,
            is_used: false,
        };
        self.incoming.insert(new.id, incoming);
        let outgoing = self.outgoing.entry(pair).or_insert_with(|| Outgoing {
            sealers: BTreeMap::new(),
            sending: None,
            route: Route::Engine,
        });
        outgoing.sealers.insert(new.id, sealer);
    }

    fn end(&mut self, pair: Pair, id: u32) {
        self.incoming.remove(&id);
        if let Some(outgoing) = self.outgoing.get_mut(&pair) {
            outgoing.sealers.remove(&id);
            if outgoing.sending == Some(id) {
                outgoing.sending = None;
            }
        }
        if !self.incoming.values().any(|channel| channel.pair == pair) {
            self.outgoing.remove(&pair);
        }
    }

    /// Forgets the channels of pairs that are no more.
    pub(super) fn retain(&mut self, is_kept: impl Fn(&Pair) -> bool) {
        self.incoming.retain(|_, channel| is_kept(&channel.pair));
        self.outgoing.retain(|pair, _| is_kept(pair));
        self.mtus.retain(|pair, _| is_kept(pair));
        self.passed.retain(|pair, _| is_kept(pair));
    }

    /// Returns what packets to `pair`'s peer are sealed by, and how they travel; None when the engine
    /// is to have them.
    pub(super) fn sealer(&mut self, pair: &Pair) -> Option<(&mut Sealer, Way<'_>)> {
        let outgoing = self.outgoing.get_mut(pair)?;
        let way = match outgoing.route {
            Route::Direct(to) => Way::Direct(to),
            Route::Engine => return None,
            Route::Relayed(slot) => self.hops.way(*pair, slot)?,
        };
        let sealer = outgoing.sealers.get_mut(&outgoing.sending?)?;
        Some((sealer, way))
    }

    /// Returns the largest packet that passes to `pair`'s peer; None when nothing is known of it.
    pub(super) fn mtu(&self, pair: &Pair) -> Option<usize> {
        self.mtus.get(pair).copied()
    }

    /// Opens the packet that a frame carries, in place; returns the hop it came by too.
    pub(super) fn open_frame(&mut self, frame: &mut [u8]) -> Result<(Opened, Slot), Unopened> {
        let (pair, slot) = self.hops.open(frame).map_err(Unopened::Dropped)?;
        let packet = frame.get_mut(a2g::HEADER..).unwrap_or_default();
        match self.open(packet) {
            Ok(opened) if opened.pair == pair => {
                let place = a2g::HEADER + opened.place.start..a2g::HEADER + opened.place.end;
                Ok((Opened { place, ..opened }, slot))
            }
            // The gateway says that another agent sent it.
            Ok(_) => Err(Unopened::Dropped(DropReason::FrameSource)),
            Err(DropReason::ChannelUnknown) => Err(Unopened::Stray(pair)),
            Err(reason) => Err(Unopened::Dropped(reason)),
        }
    }

    /// Returns whose channel a packet says that it is of.
    pub(super) fn pair_of(&self, packet: &[u8]) -> Option<Pair> {
        let (id, _) = parse(packet)?;
        self.incoming.get(&id).map(|channel| channel.pair)
    }

    /// Opens a packet in place.
    pub(super) fn open(&mut self, packet: &mut [u8]) -> Result<Opened, DropReason> {
        let (id, _) = parse(packet).ok_or(DropReason::DatagramMalformed)?;
        let channel = self.incoming.get_mut(&id);
        let channel = channel.ok_or(DropReason::ChannelUnknown)?;
        let place = channel.opener.open(packet)?;
        let is_first = !std::mem::replace(&mut channel.is_used, true);
        Ok(Opened {
            pair: channel.pair,
            place,
            first: is_first.then_some(id),
        })
    }

    /// Counts what was sealed for `pair`'s peer, and the hop it went by if a gateway got it.
    pub(super) fn note_sent(&mut self, pair: Pair, sealed: Volume, by: Option<Slot>) {
        let passed = self.passed(pair);
        passed.sent.packets += sealed.packets;
        passed.sent.bytes += sealed.bytes;
        if let Some((sent, _)) = by.and_then(|slot| passed.relayed.get_mut(slot.index())) {
            *sent += sealed.packets;
        }
    }

    /// Counts a packet that came from `pair`'s peer.
    pub(super) fn note_received(&mut self, pair: Pair, bytes: u64, from: Arrival) {
        let passed = self.passed(pair);
        passed.received.packets += 1;
        passed.received.bytes += bytes;
        passed.from = Some(from);
        if let Arrival::Relayed(slot) = from
            && let Some((_, received)) = passed.relayed.get_mut(slot.index())
        {
            *received += 1;
        }
    }

    /// Counts a packet of `pair`'s peer to a channel that is not known here.
    pub(super) fn note_unknown(&mut self, pair: Pair) {
        self.passed(pair).unknown += 1;
    }

    /// Takes out what was counted since the last call.
    pub(super) fn take_passed(&mut self) -> Vec<Passed> {
        let passed = std::mem::take(&mut self.passed);
        passed.into_values().collect()
    }

    fn passed(&mut self, pair: Pair) -> &mut Passed {
        self.passed.entry(pair).or_insert_with(|| Passed {
            local: pair.local,
            peer: pair.peer,
            sent: Volume::default(),
            received: Volume::default(),
            from: None,
            relayed: [(0, 0); MAX_HOPS],
            unknown: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::crypt::OVERHEAD;
    use crate::dataplane::testing::pair;
    use crate::engine::channel::data_key;
    use crate::wire::channel::Suite;
    use std::net::SocketAddr;

    fn new(id: u32, key: u8) -> ChannelChange {
        ChannelChange::New(NewChannel {
            id,
            remote: id,
            suite: Suite::Aes256Gcm,
            // Both directions alike: these channels talk to themselves.
            seal: data_key([key; 32]),
            open: data_key([key; 32]),
        })
    }

    fn to() -> SocketAddr {
        "192.0.2.1:7".parse().unwrap()
    }

    fn volume(packets: u64, bytes: u64) -> Volume {
        Volume { packets, bytes }
    }

    /// Two peers with channels that are in use.
    fn channels() -> Channels {
        let mut channels = Channels::new(Library::AwsLc);
        for (peer, id, key) in [(2, 20, 2), (3, 30, 3)] {
            channels.change(pair(peer), new(id, key));
            channels.change(pair(peer), ChannelChange::Route(Route::Direct(to())));
            channels.change(pair(peer), ChannelChange::Send(id));
        }
        channels
    }

    fn seal(channels: &mut Channels, peer: u16) -> Vec<u8> {
        let mut out = vec![0; 5 + OVERHEAD];
        let (sealer, _) = channels.sealer(&pair(peer)).unwrap();
        assert!(sealer.seal(b"plain", &mut out));
        out
    }

    #[test]
    fn a_packet_opens_as_of_its_own_pair() {
        let mut channels = channels();
        let mut packet = seal(&mut channels, 3);
        let mut again = seal(&mut channels, 3);

        let opened = channels.open(&mut packet).unwrap();

        assert_eq!((opened.pair, opened.first), (pair(3), Some(30)));
        assert_eq!(&packet[opened.place], b"plain");
        assert_eq!(channels.open(&mut again).unwrap().first, None);
    }

    /// Moved to another channel by its id, a packet does not open.
    #[test]
    fn channels_do_not_mix() {
        let mut channels = channels();
        let mut packet = seal(&mut channels, 3);
        packet[7] = 20;
        assert_eq!(channels.open(&mut packet), Err(DropReason::ChannelInvalid));
        packet[7] = 99;
        assert_eq!(channels.open(&mut packet), Err(DropReason::ChannelUnknown));
    }

    #[test]
    fn nothing_is_sealed_before_it_may_be_nor_after_the_end() {
        let mut channels = Channels::new(Library::AwsLc);
        channels.change(pair(2), new(20, 2));
        assert!(channels.sealer(&pair(2)).is_none());
        channels.change(pair(2), ChannelChange::Send(20));
        assert!(channels.sealer(&pair(2)).is_none());
        channels.change(pair(2), ChannelChange::Route(Route::Direct(to())));
        let mut packet = seal(&mut channels, 2);

        channels.change(pair(2), ChannelChange::End(20));

        assert!(channels.sealer(&pair(2)).is_none());
        assert_eq!(channels.open(&mut packet), Err(DropReason::ChannelUnknown));
        assert!(channels.outgoing.is_empty());
    }

    #[test]
    fn a_new_channel_takes_over_and_the_old_one_still_opens() {
        let mut channels = channels();
        let mut old = seal(&mut channels, 2);
        channels.change(pair(2), new(21, 5));
        let mut before = seal(&mut channels, 2);

        channels.change(pair(2), ChannelChange::Send(21));
        let mut after = seal(&mut channels, 2);

        assert_eq!(after[4..8], 21_u32.to_be_bytes());
        for packet in [&mut old, &mut before, &mut after] {
            assert_eq!(channels.open(packet).unwrap().pair, pair(2));
        }
    }

    #[test]
    fn pairs_that_are_no_more_have_no_channels() {
        let mut channels = channels();
        let mut packet = seal(&mut channels, 2);
        channels.note_sent(pair(2), volume(1, 5), None);

        channels.retain(|kept| *kept == pair(3));

        assert_eq!(channels.open(&mut packet), Err(DropReason::ChannelUnknown));
        assert!(channels.sealer(&pair(2)).is_none() && channels.sealer(&pair(3)).is_some());
        assert!(channels.take_passed().is_empty());
    }

    #[test]
    fn what_passed_is_told_once() {
        let mut channels = channels();
        let [_, second, third] = Slot::ALL;
        channels.note_sent(pair(2), volume(2, 100), Some(second));
        channels.note_received(pair(2), 50, Arrival::Direct(to()));
        channels.note_received(pair(3), 7, Arrival::Relayed(third));

        let told = channels.take_passed();

        assert_eq!(told.len(), 2);
        assert_eq!((told[0].sent.packets, told[0].sent.bytes), (2, 100));
        let direct = Some(Arrival::Direct(to()));
        assert_eq!((told[0].received.bytes, told[0].from), (50, direct));
        assert_eq!(told[0].relayed, [(0, 0), (2, 0), (0, 0)]);
        assert_eq!(told[1].relayed, [(0, 0), (0, 0), (0, 1)]);
        assert!(channels.take_passed().is_empty());
    }
}
