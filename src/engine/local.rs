mod channel;
mod gateways;
mod tell;
mod ways;
mod wireguard;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Instant,
};

use zeroize::Zeroizing;

use crate::engine::{
    attach::Attachment,
    event::{Event, Out, Packet, Punch, Time, Transmit},
    homes::Homes,
    hop::Slot,
    installed::{Install, Installed},
    membership::{Membership, Trusted},
    path::{Mode, Path},
    peer::{Peer, PeerConfig, PeerOutput},
    reflexive::Reflexive,
    wireguard::PlainPeer,
    withheld::Withheld,
};
use crate::id::{FullName, MemberName, OverlayIp, TunnelKey, UnixTime, hash};
use crate::statement::{Record, Statement};
use crate::wire::{
    channel::Suites,
    control::{self, Control},
    datagram::{Datagram, WireGuard},
    drop::DropReason,
};

/// Probes of ours that may be unanswered at once.
const MAX_PROBES: usize = 64;

/// One agent of this node in one network, at work: its membership, attachment and peers.
#[derive(Debug)]
pub(crate) struct Local {
    pub(crate) membership: Membership,
    pub(crate) address: OverlayIp,
    /// Our whole name, kept since finding it checks signatures.
    pub(crate) name: FullName,
    pub(crate) homes: Homes,
    /// By which gateway what is taken now came; None when it came directly.
    arrived_by: Option<Slot>,
    pub(crate) peers: Installed<Peer>,
    /// Installed peers that speak only WireGuard.
    pub(crate) wireguard: Installed<PlainPeer>,
    /// Probes without an answer: to whom, when, and which way.
    probes: BTreeMap<u64, (OverlayIp, Instant, Path)>,
    mode: Mode,
    /// What packets may be sealed with past the sessions.
    suites: Suites,
    /// Where our interfaces are.
    hosts: Vec<SocketAddr>,
    /// Where the router takes datagrams for us.
    mapped: Option<SocketAddr>,
    /// Where the gateway sees us.
    pub(crate) reflexive: Reflexive,
    /// Where others saw us, whom we asked.
    observed: Vec<SocketAddr>,
    /// Our id of the hop that told; None before the first attachment.
    told_by: Option<u32>,
    /// Where gateways see us, as it was looked at last, and their second ports.
    seen_by_gateways: Vec<(SocketAddr, Option<SocketAddr>)>,
    /// Where those second ports see us.
    seen_beside: Vec<SocketAddr>,
    /// Whether the gateway carried frames when paths were last told.
    had_relay: bool,
    /// Our record as it was when it last said something new; None before the first.
    own_record: Option<Statement<Record>>,
    pub(crate) withheld: Withheld,
    /// Until when another host is taken to run this agent too; None when none was heard of.
    pub(crate) twin_until: Option<Instant>,
    /// Whether the gateway had said so when it was last looked at.
    pub(crate) was_displaced: bool,
    /// Whether the agent was another host's when peers were last brought in line.
    pub(crate) was_at_rest: bool,
}

impl Local {
    pub(crate) fn new(
        membership: Membership,
        address: OverlayIp,
        name: FullName,
        mode: Mode,
    ) -> Self {
        let homes = Homes::new(address, membership.network);
        let mode = membership.path_mode(mode);
        Self {
            membership,
            address,
            name,
            homes,
            arrived_by: None,
            peers: Installed::default(),
            wireguard: Installed::default(),
            probes: BTreeMap::new(),
            mode,
            suites: Suites::NONE,
            hosts: Vec::new(),
            mapped: None,
            reflexive: Reflexive::default(),
            observed: Vec::new(),
            told_by: None,
            seen_by_gateways: Vec::new(),
            seen_beside: Vec::new(),
            had_relay: false,
            own_record: None,
            withheld: Withheld::default(),
            twin_until: None,
            was_displaced: false,
            was_at_rest: false,
        }
    }

    /// Brings the installed peers in line with trust; `fresh` makes an unused session index and a
    /// seed.
    ///
    /// Tells whether who may talk, or about what, changed.
    pub(crate) fn install(
        &mut self,
        time: Time,
        mut fresh: impl FnMut() -> (u32, Zeroizing<[u8; 32]>),
        out: &mut Out,
    ) -> bool {
        self.was_at_rest = self.is_at_rest(time.now);
        let trusted = if self.was_at_rest {
            Vec::new()
        } else {
            self.membership.trusted(time.unix)
        };
        let mut changed = false;
        let is_agent = |t: &Trusted| !self.membership.is_wireguard(&t.tunnel);
        let trusted = trusted.into_iter().filter(is_agent).collect::<Vec<_>>();
        let keep = trusted
            .iter()
            .map(|t| (t.member.address, t.tunnel))
            .collect::<BTreeMap<_, _>>();
        let stays =
            |address: &OverlayIp, peer: &Peer| keep.get(address) == Some(&peer.trusted().tunnel);
        let leaving = self.peers.iter().filter(|(at, peer)| !stays(at, peer));
        for address in leaving.map(|(at, _)| *at).collect::<Vec<_>>() {
            let made = self.tell_last(address, time.now);
            self.carry(address, made, time, out);
            self.close_channel(address, out);
            let waiting = self.peers.remove(&address).map(Peer::into_waiting);
            for packet in waiting.into_iter().flatten() {
                out.drop_packet(self.address, DropReason::NoPeer, &packet);
            }
            changed = true;
        }
        let keys = self.peers.values().map(|peer| peer.trusted().tunnel);
        let mut held = keys.collect::<BTreeSet<_>>();
        held.insert(self.membership.tunnel.public());
        for trusted in trusted {
            changed |= self.install_one(trusted, &mut held, time.now, &mut fresh);
        }
        changed |= self.install_wireguard(time, &mut fresh, out);
        self.note_holdings(time.now);
        for address in self.peers.keys().copied().collect::<Vec<_>>() {
            // Its record may list other gateways now.
            self.choose_gateway(address, time, out);
            self.carry_out(address, Vec::new(), time, out);
        }
        changed
    }

    fn install_one(
        &mut self,
        trusted: Trusted,
        held: &mut BTreeSet<TunnelKey>,
        now: Instant,
        fresh: &mut impl FnMut() -> (u32, Zeroizing<[u8; 32]>),
    ) -> bool {
        let address = trusted.member.address;
        if let Some(peer) = self.peers.get_mut(&address) {
            let same_filter = peer.trusted().inbound == trusted.inbound;
            peer.update(trusted);
            return !same_filter;
        }
        // Of two identities claiming one tunnel key, the one that is installed keeps it.
        if !held.insert(trusted.tunnel) {
            return false;
        }
        let (index, seed) = fresh();
        let config = PeerConfig {
            local: self.membership.tunnel.clone(),
            index,
            // What is kept of paths tells nothing of the channels' secrets.
            seed: hash(&[b"agentnet path seed", seed.as_slice()]),
            mode: self.mode,
            is_leader: self.address < address,
            channel: self.channel_config(&trusted, index, &seed),
        };
        let mut peer = Peer::new(trusted, config, now);
        let (candidates, is_attached) = (self.candidates(), self.homes.is_attached());
        let relay_mtu = self.relay_mtu();
        // Without a session nothing goes out yet.
        peer.with_path(now, &mut Vec::new(), |path| {
            path.set_candidates(&candidates, now);
            path.set_relay(is_attached, now);
            path.set_relay_mtu(relay_mtu);
        });
        self.peers.insert(address, peer);
        true
    }

    /// Returns the indices of its sessions, with peers and with gateways.
    pub(crate) fn indices(&self) -> impl Iterator<Item = u32> {
        let gateways = self.homes.iter().map(Attachment::index);
        let plain = self.wireguard.values().map(PlainPeer::index);
        self.peers
            .values()
            .map(Peer::index)
            .chain(plain)
            .chain(gateways)
    }

    /// Takes a packet of the TUN for an installed peer.
    pub(crate) fn send(&mut self, to: OverlayIp, packet: &[u8], time: Time, out: &mut Out) {
        let mut made = Vec::new();
        let sent = match self.peers.get_mut(&to) {
            Some(peer) => peer.send(packet, time.now, &mut made),
            None => self
                .send_wireguard(to, packet, time, out)
                .unwrap_or(Err(DropReason::NoPeer)),
        };
        self.carry_out(to, made, time, out);
        if let Err(reason) = sent {
            out.drop_packet(self.address, reason, packet);
        }
    }

    /// Makes a session with `to` if there is none, as a look-up of its name does.
    pub(crate) fn wake(&mut self, to: OverlayIp, time: Time, out: &mut Out) {
        let mut made = Vec::new();
        if let Some(peer) = self.peers.get_mut(&to) {
            peer.wake(time.now, &mut made);
        }
        self.carry_out(to, made, time, out);
    }

    /// Sends a probe through the session; the answer comes as [`Event::Pong`].
    pub(crate) fn probe(&mut self, to: OverlayIp, id: u64, time: Time, out: &mut Out) {
        if self.probes.len() >= MAX_PROBES {
            self.probes.pop_first();
        }
        let way = self.peers.get(&to).and_then(|peer| peer.path().current());
        self.probes
            .insert(id, (to, time.now, way.unwrap_or(Path::Relay)));
        self.with_path(to, time, out, |path| path.handle_interest(time.now));
        // Path 0: the one data takes.
        if let Some(packet) = (Control::Probe { id, path: 0 }).packet() {
            self.send(to, &packet, time, out);
        }
    }

    /// Takes a WireGuard message that a gateway or its receiver index says is from `from`.
    pub(crate) fn receive(
        &mut self,
        from: OverlayIp,
        way: Path,
        message: &[u8],
        time: Time,
        out: &mut Out,
    ) {
        let Some(peer) = self.peers.get_mut(&from) else {
            // Silence, cookies included, for everyone whose key is not installed.
            let taken = self.receive_wireguard(from, way, message, time, out);
            if let Err(reason) = taken.unwrap_or(Err(DropReason::NoPeer)) {
                out.drop(reason);
            }
            return;
        };
        let mut made = Vec::new();
        let taken = peer.receive(way, message, time.now, &mut made);
        // A handshake comes by all gateways at once, so it says nothing of any.
        let kind = Datagram::classify(message);
        let is_said = kind == Some(Datagram::WireGuard(WireGuard::Transport));
        match taken {
            Ok(()) if is_said => {
                if let Some(slot) = self.arrived_by {
                    self.note_relayed(from, slot, time, out);
                }
            }
            Ok(()) => {}
            Err(reason) => out.drop(reason),
        }
        self.carry_out(from, made, time, out);
    }

    /// Does what a peer wants done, and tells it what is due besides.
    fn carry_out(&mut self, peer: OverlayIp, made: Vec<PeerOutput>, time: Time, out: &mut Out) {
        self.carry(peer, made, time, out);
        let told = self.tell(peer, time.now);
        if !told.is_empty() {
            self.carry(peer, told, time, out);
        }
        self.drain_channel(peer, out);
    }

    fn carry(&mut self, peer: OverlayIp, made: Vec<PeerOutput>, time: Time, out: &mut Out) {
        for output in made {
            match output {
                PeerOutput::Datagram(Path::Relay, _) | PeerOutput::Alone(Path::Relay, ..) => {
                    self.relay(peer, &output, time.now, out);
                }
                PeerOutput::Datagram(Path::Direct(to), bytes) => {
                    out.transmits.push_back(Transmit::new(to, bytes));
                }
                PeerOutput::Alone(Path::Direct(to), bytes, travel) => {
                    out.transmits.push_back(Transmit { to, bytes, travel });
                }
                PeerOutput::Open(to, datagrams) => out.punch(Punch { to, datagrams }),
                PeerOutput::Doubt(doubt) => self.reflexive.doubt(doubt, time.now),
                PeerOutput::Dropped(reason, packet) => {
                    out.drop_packet(self.address, reason, &packet);
                }
                PeerOutput::Packet(way, packet) if control::is_control(&packet) => {
                    self.control(peer, way, &packet, time, out);
                }
                PeerOutput::Packet(_, bytes) => {
                    self.homes.note_traffic(time.now);
                    out.packets.push_back(Packet {
                        local: self.address,
                        peer,
                        bytes,
                    });
                }
            }
        }
    }

    fn control(&mut self, peer: OverlayIp, way: Path, packet: &[u8], time: Time, out: &mut Out) {
        match Control::parse(packet) {
            Some(Control::Probe { id, path }) => {
                let mut answered = Ok(());
                self.with_peer(peer, time, out, |peer, made| {
                    answered = peer.answer((id, path), way, time.now, made);
                });
                if let Err(reason) = answered {
                    out.drop(reason);
                }
            }
            Some(Control::ProbeReply(reply)) => {
                let asked = self.probes.get(&reply.id).filter(|(to, ..)| *to == peer);
                if let Some((_, sent, there)) = asked.copied() {
                    self.probes.remove(&reply.id);
                    out.event(Event::Pong {
                        local: self.address,
                        id: reply.id,
                        rtt: time.now.saturating_duration_since(sent),
                        path: there.max(way),
                    });
                    return;
                }
                self.with_path(peer, time, out, |path| {
                    path.handle_reply(way, &reply, time.now);
                });
            }
            Some(Control::Candidates(candidates)) => self.with_path(peer, time, out, |path| {
                path.handle_candidates(&candidates, time.now);
            }),
            Some(Control::Channel(message)) => {
                let mut taken = Ok(());
                self.with_peer(peer, time, out, |peer, made| {
                    taken = peer.receive_channel(&message, time.now, made);
                });
                if let Err(reason) = taken {
                    out.drop(reason);
                }
            }
            Some(Control::Have(have)) => {
                if let Some(peer) = self.peers.get_mut(&peer) {
                    peer.with_gossip(|gossip| gossip.handle_have(&have, time.now));
                }
            }
            Some(Control::Statement { text }) => {
                self.receive_statement(peer, text, time.now, out);
            }
            Some(Control::Part(part)) => {
                let found = self.peers.get_mut(&peer);
                match found.map_or(Ok(None), |peer| peer.receive_part(part, time.now)) {
                    Ok(Some(text)) => self.receive_statement(peer, text, time.now, out),
                    Ok(None) => {}
                    Err(reason) => out.drop(reason),
                }
            }
            Some(
                Control::Attach { .. }
                | Control::Attached(_)
                | Control::AttachRefused { .. }
                | Control::Goodbye { .. }
                | Control::Mesh(_),
            ) => {}
            None => out.drop(DropReason::ControlMalformed),
        }
    }

    /// Returns when the first of the consents and chains in use ends; None without a peer.
    pub(crate) fn next_end(&self) -> Option<UnixTime> {
        let plain = self.wireguard.values().map(PlainPeer::until);
        let peers = self.peers.values().map(|peer| peer.trusted().until);
        peers.chain(plain).min()
    }

    pub(crate) fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let peers = self.peers.poll_timeout().into_iter();
        let withheld = self.withheld.poll_timeout();
        peers
            .chain(self.homes.poll_timeout())
            .chain(self.wireguard.poll_timeout())
            .chain(withheld.map(|at| (at, "what the registry keeps back")))
            .min()
    }

    pub(crate) fn handle_timeout(&mut self, time: Time, out: &mut Out) {
        self.homes.handle_timeout(time.now);
        for address in self.peers.due(time.now) {
            let mut made = Vec::new();
            if let Some(peer) = self.peers.get_mut(&address) {
                peer.handle_timeout(time.now, &mut made);
            }
            self.carry_out(address, made, time, out);
        }
        self.handle_wireguard_timeout(time, out);
        self.drain_gateways(out);
        self.follow_gateways(time, out);
    }

    /// Finds the address of a name that this agent may see: its own or an installed peer's.
    pub(crate) fn by_name(&self, name: &FullName) -> Option<OverlayIp> {
        if self.name == *name {
            return Some(self.address);
        }
        let mut peers = self.peers.values();
        let found = peers.find(|peer| self.full_name(&peer.trusted().member.name) == *name);
        found.map(Peer::address)
    }

    /// Finds the name of an address that this agent may see.
    pub(crate) fn by_address(&self, address: OverlayIp) -> Option<FullName> {
        if address == self.address {
            return Some(self.name.clone());
        }
        self.peers
            .get(&address)
            .map(|peer| self.full_name(&peer.trusted().member.name))
    }

    /// Completes a member name with our network and suffix.
    pub(crate) fn full_name(&self, member: &MemberName) -> FullName {
        member.full(self.name.network(), &self.membership.suffix)
    }
}
