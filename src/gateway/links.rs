//! Pure: the hops between this gateway and others, one each way, by which frames pass in whole batches.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::engine::window::ReplayWindow;
use crate::gateway::mft::PeerId;
use crate::wire::a2g::{Direction, Header, HopKeys, Kind, MAX_FRAMES};
use crate::wire::drop::DropReason;

/// How long frames still come by a hop id after another was told: until that was heard, with repetitions.
const RETIRED: Duration = Duration::from_secs(60);

/// By what frames go to another gateway, as it said.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outgoing {
    pub(crate) hop: u32,
    pub(crate) secret: [u8; 32],
    pub(crate) endpoint: SocketAddr,
}

/// The hops to and from other gateways.
#[derive(Debug, Default)]
pub(crate) struct Links {
    /// By the hop id in frames to this gateway.
    incoming: BTreeMap<u32, Incoming>,
    outgoing: BTreeMap<PeerId, Sender>,
}

#[derive(Debug)]
struct Incoming {
    peer: PeerId,
    /// When it ends; None while it is the newest.
    until: Option<Instant>,
    keys: HopKeys,
    window: ReplayWindow,
}

#[derive(Debug)]
struct Sender {
    /// Whether the gateway is there; the ids of frames go on when it is back.
    is_open: bool,
    hop: u32,
    keys: HopKeys,
    endpoint: SocketAddr,
    next: u64,
}

impl Links {
    /// Tells whether a hop id is in use.
    pub(crate) fn contains(&self, hop: u32) -> bool {
        self.incoming.contains_key(&hop)
    }

    /// Takes frames of a gateway by this hop id.
    pub(crate) fn listen(&mut self, peer: PeerId, hop: u32, secret: &[u8; 32]) {
        let incoming = Incoming {
            peer,
            until: None,
            keys: HopKeys::derive(secret, Direction::Up),
            window: ReplayWindow::new(),
        };
        self.incoming.insert(hop, incoming);
    }

    /// Takes frames of a gateway by this hop id only for as long as those under way may need, and by no
    /// earlier one.
    pub(crate) fn retire(&mut self, peer: PeerId, hop: u32, now: Instant) {
        let is_earlier = |of: &Incoming| of.peer == peer && of.until.is_some();
        self.incoming.retain(|_, incoming| !is_earlier(incoming));
        if let Some(incoming) = self.incoming.get_mut(&hop) {
            incoming.until = Some(now + RETIRED);
        }
    }

    /// Ends the hop ids whose time is over.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        let is_over = |incoming: &Incoming| incoming.until.is_some_and(|at| at <= now);
        self.incoming.retain(|_, incoming| !is_over(incoming));
    }

    /// Sends frames to a gateway as it said.
    pub(crate) fn open_to(&mut self, peer: PeerId, to: &Outgoing) {
        let known = self.outgoing.get_mut(&peer);
        if let Some(known) = known.filter(|known| known.hop == to.hop) {
            known.is_open = true;
            known.endpoint = to.endpoint;
            return;
        }
        let sender = Sender {
            is_open: true,
            hop: to.hop,
            keys: HopKeys::derive(&to.secret, Direction::Up),
            endpoint: to.endpoint,
            next: 0,
        };
        self.outgoing.insert(peer, sender);
    }

    /// Sends frames of a gateway to another endpoint.
    pub(crate) fn move_to(&mut self, peer: PeerId, endpoint: SocketAddr) {
        if let Some(sender) = self.outgoing.get_mut(&peer) {
            sender.endpoint = endpoint;
        }
    }

    /// Sends no more frames to a gateway, until it is there again.
    pub(crate) fn close(&mut self, peer: PeerId) {
        if let Some(sender) = self.outgoing.get_mut(&peer) {
            sender.is_open = false;
        }
    }

    /// Forgets a gateway, and the hop ids in frames of it.
    pub(crate) fn end(&mut self, peer: PeerId) {
        self.outgoing.remove(&peer);
        self.incoming.retain(|_, incoming| incoming.peer != peer);
    }

    /// Opens a frame of another gateway; None when its hop id is none of ours.
    pub(crate) fn take(
        &mut self,
        hop: u32,
        frame: &[u8],
    ) -> Option<Result<(PeerId, Header), DropReason>> {
        let incoming = self.incoming.get_mut(&hop)?;
        Some(incoming.open(frame))
    }

    /// Writes the header of a frame to a gateway over the one it came with, and returns where it goes.
    pub(crate) fn seal(
        &mut self,
        peer: PeerId,
        header: &Header,
        frame: &mut [u8],
    ) -> Result<SocketAddr, DropReason> {
        let sender = self.outgoing.get_mut(&peer).filter(|s| s.is_open);
        let sender = sender.ok_or(DropReason::FrameTarget)?;
        if sender.next >= MAX_FRAMES {
            return Err(DropReason::FrameQuota);
        }
        let onward = Header {
            hop: sender.hop,
            message: sender.next,
            ..*header
        };
        sender.next += 1;
        onward.seal(&sender.keys, frame);
        Ok(sender.endpoint)
    }
}

impl Incoming {
    fn open(&mut self, frame: &[u8]) -> Result<(PeerId, Header), DropReason> {
        let header = Header::open(&self.keys, frame).map_err(|_| DropReason::FrameTag)?;
        self.window
            .take(header.message)
            .filter(|_| header.message < MAX_FRAMES)
            .ok_or(DropReason::FrameReplayed)?;
        match header.kind {
            Kind::Data => Ok((self.peer, header)),
            Kind::Heartbeat | Kind::SessionEnd | Kind::Displaced => Err(DropReason::FrameMalformed),
        }
    }
}
