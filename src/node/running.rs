//! The running daemon, as those reach it who ask something of it.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::engine::membership::Membership;
use crate::id::{OverlayIp, Suffix, UnixTime};
use crate::node::driver::Handle;
use crate::node::portmap::PortMap;
use crate::node::sync::Link;
use crate::wire::api::local::{Dns, RegistryStatus};

/// What is known of an agent beside the engine.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// None when it could not be made.
    pub(super) device: Option<String>,
    /// Why names are not answered at its address; None while they are.
    pub(super) deaf: Option<String>,
    pub(super) url: String,
    pub(super) link: watch::Receiver<Link>,
}

/// What changes while the daemon runs: agents that joined or left, DNS settings that are asked for.
#[derive(Debug)]
pub(super) enum Change {
    /// Answered with why the agent does not run.
    Add(Box<Membership>, oneshot::Sender<Result<(), String>>),
    ApplyDns(oneshot::Sender<Dns>),
    Remove(OverlayIp, oneshot::Sender<Option<Membership>>),
    RevertDns(oneshot::Sender<Dns>),
}

/// The running daemon, as its local API reaches it.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) handle: Handle,
    /// The UDP port of the underlay.
    pub(super) port: u16,
    /// What became of the host's DNS settings.
    pub(super) dns: watch::Receiver<Dns>,
    pub(super) started: UnixTime,
    /// Told when somebody wants the daemon to stop.
    pub(super) stop: Arc<Notify>,
    /// Told when the registry took a statement.
    pub(super) sent: Arc<Notify>,
    pub(super) suffix: Suffix,
    pub(super) changes: mpsc::Sender<Change>,
    /// Whether the node runs for one program, and no agent is to join.
    pub(super) is_private: bool,
    pub(super) facts: watch::Receiver<BTreeMap<OverlayIp, Facts>>,
    /// What the host's router does for us.
    pub(super) mapped: watch::Receiver<PortMap>,
}

impl Node {
    pub(super) fn links(&self) -> BTreeMap<OverlayIp, RegistryStatus> {
        let facts = self.facts.borrow();
        let status = |facts: &Facts| {
            let link = facts.link.borrow().clone();
            let (state, since, error) = (link.state, link.since, link.error);
            RegistryStatus {
                url: facts.url.clone(),
                state,
                since,
                error,
            }
        };
        facts
            .iter()
            .map(|(local, facts)| (*local, status(facts)))
            .collect()
    }

    /// Returns why names are not answered at the addresses of some agents.
    pub(super) fn deaf(&self) -> BTreeMap<OverlayIp, String> {
        let facts = self.facts.borrow();
        let deaf = facts.iter();
        deaf.filter_map(|(local, facts)| Some((*local, facts.deaf.clone()?)))
            .collect()
    }

    pub(super) fn devices(&self) -> BTreeMap<OverlayIp, String> {
        let facts = self.facts.borrow();
        facts
            .iter()
            .filter_map(|(local, facts)| Some((*local, facts.device.clone()?)))
            .collect()
    }
}
