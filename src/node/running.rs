//! The running daemon, as those reach it who ask something of it.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::dataplane::Realm;
use crate::engine::membership::Membership;
use crate::id::{OverlayIp, Suffix, UnixTime};
use crate::node::daemon::DaemonError;
use crate::node::driver::Handle;
use crate::node::lent::Lent;
use crate::node::portmap::PortMap;
use crate::node::sync::Link;
use crate::wire::api::local::{Dns, RegistryStatus};
use crate::wire::api::problem::Problem;

/// What is known of an agent beside the engine.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// None when it could not be made.
    pub(super) device: Option<String>,
    /// The process whose program has the device; None where it is the host's.
    pub(super) program: Option<u32>,
    /// Why names are not answered at its address; None while they are.
    pub(super) deaf: Option<String>,
    pub(super) url: String,
    pub(super) link: watch::Receiver<Link>,
}

/// A program with a network of its own.
#[derive(Debug)]
pub(super) struct Visitor {
    pub(super) lent: Lent,
    /// Who runs it.
    pub(super) process: Option<u32>,
}

/// What changes while the daemon runs: agents that joined or left, DNS settings that are asked for.
#[derive(Debug)]
pub(super) enum Change {
    /// Answered with why the agent does not run.
    Add(Box<Membership>, oneshot::Sender<Result<(), DaemonError>>),
    ApplyDns(oneshot::Sender<Dns>),
    /// Lets a program go: its device, its names and its way to the local API.
    LetGo(OverlayIp, Realm),

    Remove(OverlayIp, oneshot::Sender<Option<Membership>>),
    RevertDns(oneshot::Sender<Dns>),
    /// Has an agent live with a program; answered with where that is, or why it cannot.
    TakeIn(
        OverlayIp,
        Box<Visitor>,
        oneshot::Sender<Result<Realm, Problem>>,
    ),
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
    /// Told when who may talk changed.
    pub(super) installed: Arc<Notify>,
    pub(super) suffix: Suffix,
    pub(super) changes: mpsc::Sender<Change>,
    /// What a program's device may have: offloads, and how many queues.
    pub(super) offload: bool,
    pub(super) queues: usize,
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

    /// Returns the devices that there are, and whose program has each that is not the host's.
    pub(super) fn devices(&self) -> BTreeMap<OverlayIp, (String, Option<u32>)> {
        let facts = self.facts.borrow();
        let devices = facts.iter();
        devices
            .filter_map(|(local, facts)| Some((*local, (facts.device.clone()?, facts.program))))
            .collect()
    }
}
