//! What an agent tells its peers beside data, and takes from them.

use std::time::Instant;

use crate::engine::{
    event::{Heard, Out, Time},
    gossip::{Holdings, Say},
    local::Local,
    membership::Refused,
    peer::{Peer, PeerOutput},
    trust::Told,
};
use crate::id::OverlayIp;
use crate::statement::{Record, Statement};
use crate::wire::{control::Control, drop::DropReason, have::Have};

impl Local {
    /// Takes our record as it was just signed; peers are told when it says something new.
    pub(crate) fn note_record(&mut self, record: &Statement<Record>, now: Instant) {
        let known = self.own_record.as_ref();
        if known.is_some_and(|known| known.claims() == record.claims()) {
            return;
        }
        self.own_record = Some(record.clone());
        self.note_holdings(now);
    }

    /// Lets what peers are told follow what we keep.
    pub(super) fn note_holdings(&mut self, now: Instant) {
        let addresses = self.peers.keys().copied().collect::<Vec<_>>();
        for address in addresses {
            let Some(holdings) = self.peers.get(&address).map(|peer| self.holdings(peer)) else {
                continue;
            };
            if let Some(peer) = self.peers.get_mut(&address) {
                peer.with_gossip(|gossip| gossip.set(holdings, now));
            }
        }
    }

    fn holdings(&self, peer: &Peer) -> Holdings {
        let (membership, did) = (&self.membership, peer.trusted().member.agent.did());
        let consent = |kept: Option<&Statement<_>>| kept.map_or(0, Statement::seq);
        Holdings {
            have: Have {
                revocations: membership.revocations.summary(),
                record: membership.records.get(&did).map_or(0, Statement::seq),
                consent: consent(membership.received.get(&did)),
            },
            record: self.own_record.as_ref().map_or(0, Statement::seq),
            consent: consent(membership.given.get(&did)),
        }
    }

    /// Tells a peer what is due.
    pub(super) fn tell(&mut self, to: OverlayIp, now: Instant) -> Vec<PeerOutput> {
        let mut made = Vec::new();
        while let Some(say) = self.peers.get_mut(&to).and_then(|p| p.poll_gossip(now)) {
            let message = self.message(to, say);
            if let (Some(message), Some(peer)) = (message, self.peers.get_mut(&to)) {
                peer.tell(&message, now, &mut made);
            }
        }
        made
    }

    fn message(&self, to: OverlayIp, say: Say) -> Option<Control> {
        let text = match say {
            Say::Have(have) => return Some(Control::Have(have)),
            Say::Consent => {
                let did = self.peers.get(&to)?.trusted().member.agent.did();
                self.membership.given.get(&did)?.text()
            }
            Say::Record => self.own_record.as_ref()?.text(),
            Say::Revocation(place) => {
                let all = self.membership.revocations.statements();
                all.get(place)?.text()
            }
        };
        let text = text.to_owned();
        Some(Control::Statement { text })
    }

    /// Tells a peer that leaves why, when it is our consent that was taken back.
    ///
    /// The registry tells it too, but may be away; the peer would send into silence.
    pub(super) fn tell_last(&mut self, to: OverlayIp, now: Instant) -> Vec<PeerOutput> {
        let mut made = Vec::new();
        let Some(peer) = self.peers.get_mut(&to) else {
            return made;
        };
        let did = peer.trusted().member.agent.did();
        if let Some(text) = self.membership.taken_back(&did) {
            let text = text.to_owned();
            peer.tell_last(&Control::Statement { text }, now, &mut made);
        }
        made
    }

    /// Takes a statement out of a session with an installed peer.
    pub(super) fn receive_statement(
        &mut self,
        from: OverlayIp,
        text: String,
        now: Instant,
        out: &mut Out,
    ) {
        let Some(peer) = self.peers.get_mut(&from) else {
            return;
        };
        let did = peer.trusted().member.agent.did();
        let is_known = self.membership.keeps(&did, &text);
        let mut is_admitted = true;
        peer.with_gossip(|gossip| {
            gossip.handle_statement(now);
            is_admitted = is_known || gossip.admit(now);
        });
        if !is_admitted {
            out.drop(DropReason::ControlLimited);
        } else if !is_known {
            let local = self.address;
            out.heard.push_back(Heard { local, from, text });
        }
    }

    /// Checks and keeps a statement that a peer told; tells whether it was new.
    pub(crate) fn hear(&mut self, heard: &Heard, time: Time) -> Result<bool, Refused> {
        let Some(peer) = self.peers.get_mut(&heard.from) else {
            return Ok(false);
        };
        let did = peer.trusted().member.agent.did();
        let told = self.membership.take_told(&did, &heard.text, time.unix);
        if told.as_ref().is_err_and(Refused::is_forgery) {
            peer.with_gossip(|gossip| gossip.punish(time.now));
        }
        match told? {
            Told::Known => Ok(false),
            Told::Kept => Ok(true),
            Told::Revocation(hash) => {
                self.withheld.handle_heard(hash, did, time.now);
                Ok(true)
            }
        }
    }
}
