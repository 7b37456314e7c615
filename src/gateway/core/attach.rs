//! Pure: who may attach, and by what.

use std::net::SocketAddr;
use std::time::Instant;

use rand::Rng;

use crate::engine::limits::Source;
use crate::gateway::core::Core;
use crate::gateway::forward::NewHop;
use crate::id::{Did, NetworkId, TunnelKey, UnixTime};
use crate::statement::{Member, Record, Statement, verify_record};
use crate::wire::a2g::gateway_address;
use crate::wire::carrier;
use crate::wire::control::{Attached, Control, Refusal};

impl Core {
    pub(super) fn attach(
        &mut self,
        from: SocketAddr,
        key: TunnelKey,
        record: String,
        now: Instant,
        unix: UnixTime,
    ) {
        let answer = match self.check(from, &key, &record, unix) {
            Ok((member, seq, gateways)) => {
                let new = self.new_hop(from, key, record, (&member, seq, gateways));
                match new {
                    Some((new, answer)) => {
                        tracing::debug!(agent = %new.agent, "Agent attached");
                        let farewell = self.hops.insert(new, now);
                        if let Some((to, frame)) = farewell {
                            self.send(to, frame);
                        }
                        answer
                    }
                    None => refusal(
                        Refusal::BadRecord,
                        "the gateway has no address in the domain",
                    ),
                }
            }
            Err((code, text)) => refusal(code, &text),
        };
        if let Some(sealed) = self.guests.answer(&key, answer, now) {
            self.send(from, sealed);
        }
    }

    /// Decides whether the agent of a record may attach in a session of `key`.
    fn check(
        &self,
        from: SocketAddr,
        key: &TunnelKey,
        record: &str,
        unix: UnixTime,
    ) -> Result<(Member, u64, Vec<Did>), (Refusal, String)> {
        let bad = |text: String| (Refusal::BadRecord, text);
        let record = Statement::<Record>::open(record).map_err(|e| bad(e.to_string()))?;
        let network = record
            .network()
            .and_then(|n| Some((n, self.networks.get(&n)?)));
        let (network, revoked) = network.ok_or_else(|| {
            let text = "this gateway does not serve the network".to_owned();
            (Refusal::NotServed, text)
        })?;
        let member = verify_record(&record, &network, revoked, unix);
        let member = member.map_err(|e| bad(e.to_string()))?;
        if record.claims().tunnel != *key {
            let text = "the record names another tunnel key".to_owned();
            return Err((Refusal::WrongKey, text));
        }
        let known = self.hops.of(member.address);
        if known.is_some_and(|hop| hop.new.key != *key && hop.new.seq > record.seq()) {
            let text = "a newer record with another tunnel key is attached".to_owned();
            return Err((Refusal::Outdated, text));
        }
        // One that is attached may come back, from wherever it is.
        if known.is_none() {
            self.has_room(&network, from)?;
        }
        let gateways = record.claims().gateways.clone();
        Ok((member, record.seq(), gateways))
    }

    /// Tells whether one more agent may attach.
    fn has_room(&self, network: &NetworkId, from: SocketAddr) -> Result<(), (Refusal, String)> {
        let full = |text: &str| Err((Refusal::Full, text.to_owned()));
        let (quota, tenants) = (&self.hops.quota, &self.hops.tenants);
        let is_at = |most: usize, now: usize| most > 0 && now >= most;
        if self.hops.len() >= self.config.max_attachments {
            return full("the gateway is full");
        }
        if is_at(quota.network_agents, tenants.of_network(network)) {
            return full("as many agents of the network are attached as may be");
        }
        if is_at(quota.source_agents, tenants.of_source(Source::of(from))) {
            return full("as many agents at this address are attached as may be");
        }
        Ok(())
    }

    fn new_hop(
        &mut self,
        from: SocketAddr,
        key: TunnelKey,
        record: String,
        (member, seq, gateways): (&Member, u64, Vec<Did>),
    ) -> Option<(NewHop, Control)> {
        let gateway = gateway_address(member.prefix.domain(), self.gateway).ok()?;
        let up = loop {
            let up = self.rng.random();
            if !self.hops.contains(up) {
                break up;
            }
        };
        let new = NewHop {
            agent: member.address,
            network: member.network,
            key,
            seq,
            record,
            gateways,
            expires: member.expires,
            gateway,
            up,
            down: self.rng.random(),
            secret: self.rng.random(),
            endpoint: from,
        };
        let answer = Control::Attached(Attached {
            lease: u32::try_from(self.config.lease.as_secs()).unwrap_or(u32::MAX),
            // Who need not know where it is cannot tell anybody.
            observed: if member.authority.root.border {
                carrier::NOWHERE
            } else {
                carrier::told(from)
            },
            up,
            down: new.down,
            secret: new.secret,
            mtu: self.config.mtu,
            reset_token: self.token(up),
            stun_port: self.stun.other_port(from),
        });
        Some((new, answer))
    }
}

fn refusal(code: Refusal, text: &str) -> Control {
    let text = text.to_owned();
    Control::AttachRefused { code, text }
}
