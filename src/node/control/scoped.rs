//! What a program in a namespace of its own may ask: of its own agent, and of nothing else on the host.

use std::sync::Arc;

use async_trait::async_trait;

use crate::engine::placement::Placement;
use crate::id::OverlayIp;
use crate::node::capture::Pieces;
use crate::node::control::{choose_of, list, paths, ping};
use crate::node::driver::Core;
use crate::node::local_api::Control;
use crate::node::running::Node;
use crate::wire::api::local::{
    AutoRemove, AutoRule, AutoRules, CaptureQuery, Dns, Down, JoinRequest, Joined, Left, LogLines,
    Metrics, NetcheckTargets, OfAgent, PathQuery, PathReport, Peers, Pending, PingReply,
    PingRequest, Status, TrustApprove, TrustAwait, TrustChanged, TrustList, TrustName,
    TrustRequest, TrustStands, Whois, WhoisQuery, WireGuardAdd, WireGuardAdded, WireGuardPeers,
    WireGuardRemove, WireGuardRemoved,
};
use crate::wire::api::problem::{Code, Problem};

/// Finds the local agent a caller means among those whose placement lets it: the one named, or the only one.
pub(in crate::node) fn allowed(
    core: &Core,
    agent: Option<&str>,
    may: impl Fn(&Placement) -> bool,
) -> Result<OverlayIp, Problem> {
    let is_allowed = |local: &OverlayIp| {
        let membership = core.engine.membership(*local);
        membership.is_some_and(|membership| may(&membership.placement))
    };
    let all = core.engine.locals().collect::<Vec<_>>();
    let found = choose_of(core, all.iter().copied().filter(is_allowed), agent);
    if found.is_ok() || !all.iter().any(|local| !is_allowed(local)) {
        return found;
    }
    match choose_of(core, all, agent) {
        Ok(_) => {
            let what = "this agent is not for programs of your user";
            let mut problem = Problem::with(Code::Forbidden, what);
            "run it as root or in group agentnet, or have the agent added with --user"
                .clone_into(&mut problem.hint);
            Err(problem)
        }
        Err(_) => found,
    }
}

/// A daemon as one agent's programs reach it.
#[derive(Debug)]
pub(in crate::node) struct Scoped {
    node: Arc<Node>,
    local: OverlayIp,
}

impl Scoped {
    /// Narrows a daemon to one agent.
    pub(in crate::node) const fn new(node: Arc<Node>, local: OverlayIp) -> Self {
        Self { node, local }
    }

    /// Returns the agent's full name, unless the caller names another one.
    async fn own(&self, asked: Option<String>) -> Result<Option<String>, Problem> {
        let local = self.local;
        let name = self.node.handle.call(move |core| core.engine.name(local));
        let name = name.await?.ok_or_else(|| Problem::new(Code::NotFound))?;
        match asked {
            Some(asked) if asked != name.to_string() && asked != name.member().to_string() => {
                let what = format!("no agent {asked} here");
                Err(Problem::with(Code::NotFound, what))
            }
            Some(_) | None => Ok(Some(name.to_string())),
        }
    }
}

fn not_here<T>(what: &str) -> Result<T, Problem> {
    let mut problem = Problem::with(Code::Forbidden, format!("{what} is the host's matter"));
    "run it outside of `agentnet run`".clone_into(&mut problem.hint);
    Err(problem)
}

#[async_trait]
impl Control for Scoped {
    async fn status(&self) -> Result<Status, Problem> {
        let mut status = list::status(&self.node).await?;
        status.agents.retain(|agent| agent.address == self.local);
        status.warnings.clear();
        status.drops.clear();
        Ok(status)
    }

    async fn netcheck(&self) -> Result<NetcheckTargets, Problem> {
        not_here("the host's network")
    }

    async fn dns(&self) -> Result<Dns, Problem> {
        not_here("the host's DNS")
    }

    async fn dns_apply(&self) -> Result<Dns, Problem> {
        not_here("the host's DNS")
    }

    async fn dns_revert(&self) -> Result<Dns, Problem> {
        not_here("the host's DNS")
    }

    async fn peers(&self, of: OfAgent) -> Result<Peers, Problem> {
        let agent = self.own(of.agent).await?;
        self.node.peers(OfAgent { agent }).await
    }

    async fn whois(&self, query: WhoisQuery) -> Result<Whois, Problem> {
        let local = self.local;
        let found = self
            .node
            .handle
            .call(move |core| list::whois_of(core, &[local], query.address));
        found.await?
    }

    async fn trust_pending(&self, of: OfAgent) -> Result<Pending, Problem> {
        let agent = self.own(of.agent).await?;
        self.node.trust_pending(OfAgent { agent }).await
    }

    async fn trust_list(&self, of: OfAgent) -> Result<TrustList, Problem> {
        let agent = self.own(of.agent).await?;
        self.node.trust_list(OfAgent { agent }).await
    }

    async fn trust_request(&self, request: TrustRequest) -> Result<TrustChanged, Problem> {
        let agent = self.own(request.agent.clone()).await?;
        let request = TrustRequest { agent, ..request };
        self.node.trust_request(request).await
    }

    async fn trust_await(&self, wait: TrustAwait) -> Result<TrustStands, Problem> {
        let agent = self.own(wait.agent.clone()).await?;
        self.node.trust_await(TrustAwait { agent, ..wait }).await
    }

    async fn trust_approve(&self, approve: TrustApprove) -> Result<TrustChanged, Problem> {
        let agent = self.own(approve.agent.clone()).await?;
        let approve = TrustApprove { agent, ..approve };
        self.node.trust_approve(approve).await
    }

    async fn trust_deny(&self, deny: TrustName) -> Result<TrustChanged, Problem> {
        let agent = self.own(deny.agent.clone()).await?;
        self.node.trust_deny(TrustName { agent, ..deny }).await
    }

    async fn trust_revoke(&self, revoke: TrustName) -> Result<TrustChanged, Problem> {
        let agent = self.own(revoke.agent.clone()).await?;
        self.node.trust_revoke(TrustName { agent, ..revoke }).await
    }

    async fn auto_list(&self, of: OfAgent) -> Result<AutoRules, Problem> {
        let agent = self.own(of.agent).await?;
        self.node.auto_list(OfAgent { agent }).await
    }

    async fn auto_add(&self, rule: AutoRule) -> Result<AutoRules, Problem> {
        let agent = self.own(rule.agent.clone()).await?;
        self.node.auto_add(AutoRule { agent, ..rule }).await
    }

    async fn auto_remove(&self, remove: AutoRemove) -> Result<AutoRules, Problem> {
        let agent = self.own(remove.agent.clone()).await?;
        let remove = AutoRemove { agent, ..remove };
        self.node.auto_remove(remove).await
    }

    async fn wireguard_list(&self, of: OfAgent) -> Result<WireGuardPeers, Problem> {
        let agent = self.own(of.agent).await?;
        self.node.wireguard_list(OfAgent { agent }).await
    }

    async fn wireguard_add(&self, _: WireGuardAdd) -> Result<WireGuardAdded, Problem> {
        not_here("who speaks WireGuard with the node")
    }

    async fn wireguard_remove(&self, _: WireGuardRemove) -> Result<WireGuardRemoved, Problem> {
        not_here("who speaks WireGuard with the node")
    }

    async fn path(&self, query: PathQuery) -> Result<PathReport, Problem> {
        let agent = self.own(query.agent.clone()).await?;
        let query = PathQuery { agent, ..query };
        let report = move |core: &mut Core| paths::report(core, &query);
        self.node.handle.call(report).await?
    }

    async fn ping(&self, ping: PingRequest) -> Result<PingReply, Problem> {
        if ping.tcp.is_some() {
            return not_here("a connection");
        }
        let agent = self.own(ping.agent.clone()).await?;
        ping::ping(&self.node, PingRequest { agent, ..ping }).await
    }

    async fn capture(&self, query: CaptureQuery) -> Result<Pieces, Problem> {
        let agent = self.own(query.agent.clone()).await?;
        self.node.capture(CaptureQuery { agent, ..query }).await
    }

    async fn log(&self) -> Result<LogLines, Problem> {
        not_here("the daemon's log")
    }

    async fn metrics(&self) -> Result<Metrics, Problem> {
        not_here("what the daemon counts")
    }

    async fn join(&self, _: JoinRequest) -> Result<Joined, Problem> {
        not_here("who is an agent there")
    }

    async fn leave(&self, _: OfAgent) -> Result<Left, Problem> {
        not_here("who is an agent there")
    }

    async fn down(&self) -> Result<Down, Problem> {
        not_here("the daemon")
    }
}
