//! What the local API asks of the daemon.

pub(super) mod list;
pub(super) mod paths;
mod ping;
mod scoped;
mod wait;
pub(super) mod warnings;
mod wireguard;

use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::oneshot;
use tracing::{debug, info};

use crate::engine::{
    membership::{self, Membership, Selector},
    path::Path,
    placement::Placement,
    trust::TrustError,
};
use crate::id::{FullName, MemberName, OverlayIp, UnixTime};
use crate::node::{
    capture::{self, Pieces},
    causes::with_causes,
    daemon::DaemonError,
    driver::{Core, Stopped, now},
    join::{self, JoinError},
    local_api::Control,
    metrics, netcheck,
    running::{Change as Asked, Node},
};
use crate::os::{clock, recent};
use crate::registry::client::ClientError;
use crate::statement::{Scope, token::JoinToken};
use crate::wire::api::{
    local::{
        AutoFrom, AutoRemove, AutoRule, AutoRules, CaptureQuery, Dns, Down, JoinRequest, Joined,
        Left, LogLines, Metrics, NetcheckTargets, OfAgent, PathKind, PathQuery, PathReport, Peers,
        Pending, PingReply, PingRequest, Status, TrustApprove, TrustAwait, TrustChange,
        TrustChanged, TrustList, TrustName, TrustRequest, TrustStands, Whois, WhoisQuery,
        WireGuardAdd, WireGuardAdded, WireGuardPeers, WireGuardRemove, WireGuardRemoved,
    },
    problem::{Code, Problem},
};

pub(super) use scoped::{Scoped, allowed};

/// How long leaving waits for the registry before it goes on without.
const FAREWELL: Duration = Duration::from_secs(5);

/// How long a change waits for the registry to take the news, before it answers without.
const NEWS: Duration = Duration::from_millis(1500);

impl From<Stopped> for Problem {
    fn from(stopped: Stopped) -> Self {
        Self::with(Code::Internal, stopped)
    }
}

impl From<TrustError> for Problem {
    fn from(error: TrustError) -> Self {
        let code = match &error {
            TrustError::NoRequest(_) | TrustError::NoConsent(_) | TrustError::NoRule => {
                Code::NotFound
            }
            TrustError::Itself(_) | TrustError::LongReason | TrustError::Statement(_) => {
                Code::BadRequest
            }
            TrustError::Full => Code::NoRoom,
            TrustError::NoMember(_) => Code::BadChain,
        };
        Self::with(code, error)
    }
}

impl From<JoinError> for Problem {
    fn from(error: JoinError) -> Self {
        let code = match error {
            JoinError::Registry(error) => return of_registry(*error),
            JoinError::AlreadyMember(_) => Code::NameTaken,
            JoinError::ClockBehind(_) => Code::ClockSkew,
            JoinError::NameNeeded(_) => Code::BadRequest,
            JoinError::NameNotAllowed { .. } => Code::Forbidden,
            JoinError::Token(_) | JoinError::BadPin => Code::BadRequest,
            JoinError::WrongRegistry => Code::Unauthorized,
            JoinError::Chain(_) | JoinError::Statement(_) | JoinError::Refused(_) => Code::BadChain,
        };
        Self::with(code, error)
    }
}

/// Passes on what the registry told, or says why it told nothing.
fn of_registry(error: ClientError) -> Problem {
    match error {
        ClientError::Denied(problem)
        | ClientError::NotFound(problem)
        | ClientError::Problem(problem) => problem,
        ClientError::ClockSkew { server } => Problem::clock_skew(server),
        error @ ClientError::Unreachable { .. } => Problem::with(Code::Unreachable, error),
        error @ (ClientError::BadPin(_)
        | ClientError::BadUrl(_)
        | ClientError::WrongDomain
        | ClientError::Lapsed(_)
        | ClientError::Malformed(_)
        | ClientError::Tls(_)) => Problem::with(Code::Unauthorized, error),
    }
}

/// Finds the local agent a caller means: the one named, or the only one.
pub(super) fn choose(core: &Core, agent: Option<&str>) -> Result<OverlayIp, Problem> {
    choose_of(core, core.engine.locals(), agent)
}

/// The same of some local agents.
fn choose_of(
    core: &Core,
    locals: impl IntoIterator<Item = OverlayIp>,
    agent: Option<&str>,
) -> Result<OverlayIp, Problem> {
    let named = |local: &OverlayIp| {
        let name = core.engine.name(*local);
        name.is_some_and(|name| agent.is_none_or(|wanted| is_called(&name, wanted)))
    };
    let found = locals.into_iter().filter(named).collect::<Vec<_>>();
    match (found.as_slice(), agent) {
        ([one], _) => Ok(*one),
        ([], None) => Err(Problem::with(
            Code::NotFound,
            "no agent joined here yet; run `agentnet join`",
        )),
        ([], Some(name)) => Err(Problem::with(
            Code::NotFound,
            format!("no agent {name} here"),
        )),
        (_, _) => Err(Problem::with(
            Code::BadRequest,
            "several agents are here; say which with --agent NAME",
        )),
    }
}

/// Tells whether `wanted` is a name's short or full form.
fn is_called(name: &FullName, wanted: &str) -> bool {
    name.member().to_string() == wanted || name.to_string() == wanted
}

/// Reads the short or full name of another agent of the network `membership` is in.
fn member_name(membership: &Membership, text: &str) -> Result<MemberName, Problem> {
    let own = membership.name();
    let full = FullName::parse(text, &membership.suffix).ok();
    if let (Some(full), Some(own)) = (full, own) {
        if full.network() == own.network() {
            return Ok(full.member().clone());
        }
        let what = format!("{text} is in another network than {own}");
        return Err(Problem::with(Code::NotFound, what));
    }
    text.parse()
        .map_err(|error| Problem::with(Code::BadRequest, error))
}

type Change =
    Box<dyn FnOnce(&mut Membership, MemberName, UnixTime) -> Result<(), TrustError> + Send>;

impl Node {
    /// Changes trust with the agent `name` and returns when all of it holds here.
    async fn change(
        &self,
        agent: Option<String>,
        name: String,
        what: TrustChange,
        inbound: Option<Scope>,
        change: Change,
    ) -> Result<TrustChanged, Problem> {
        let changed = self.handle.call(move |core| {
            let local = choose(core, agent.as_deref())?;
            let membership = core.engine.membership(local);
            let member = membership.map(|m| member_name(m, &name));
            let member = member.ok_or_else(|| Problem::new(Code::NotFound))??;
            let named = member.clone();
            let done = core
                .engine
                .change(local, now(), |m, unix| change(m, named, unix));
            done.ok_or_else(|| Problem::new(Code::NotFound))??;
            let barrier = core.settle_now();
            Ok::<_, Problem>((local, member, barrier, kept(core)))
        });
        let (local, member, barrier, kept) = changed.await??;
        if let Some(barrier) = barrier {
            // The workers are gone only when the daemon stops, and then nothing passes either.
            drop(barrier.await);
        }
        kept?;
        debug!(agent = %local, peer = %member, change = ?what, "Trust changed");
        let told = self.await_told(local).await?;
        let name = self.full_name(local, &member).await?;
        Ok(TrustChanged {
            name,
            change: what,
            inbound,
            told,
        })
    }

    /// Waits a moment for the registry to take what was sent to it.
    async fn await_told(&self, local: OverlayIp) -> Result<bool, Stopped> {
        let taken = async {
            loop {
                // Listening from before the look, so that nothing is missed in between.
                let mut news = std::pin::pin!(self.sent.notified());
                news.as_mut().enable();
                let outbox = self
                    .handle
                    .call(move |core| core.engine.outbox(local))
                    .await?;
                if outbox.is_empty() {
                    return Ok(());
                }
                news.await;
            }
        };
        match tokio::time::timeout(NEWS, taken).await {
            Ok(Ok(())) => Ok(true),
            Ok(Err(stopped)) => Err(stopped),
            Err(_elapsed) => Ok(false),
        }
    }

    async fn full_name(&self, local: OverlayIp, member: &MemberName) -> Result<String, Problem> {
        let member = member.clone();
        let name = self.handle.call(move |core| {
            let own = core.engine.name(local)?;
            let suffix = core.engine.membership(local)?.suffix.clone();
            Some(member.full(own.network(), &suffix).to_string())
        });
        name.await?.ok_or_else(|| Problem::new(Code::NotFound))
    }
}

#[async_trait]
impl Control for Node {
    async fn status(&self) -> Result<Status, Problem> {
        list::status(self).await
    }

    async fn netcheck(&self) -> Result<NetcheckTargets, Problem> {
        Ok(self.handle.call(|core| netcheck::known(core)).await?)
    }

    async fn dns(&self) -> Result<Dns, Problem> {
        Ok(self.dns.borrow().clone())
    }

    async fn dns_apply(&self) -> Result<Dns, Problem> {
        let (done, applied) = oneshot::channel();
        let change = Asked::ApplyDns(done);
        self.changes.send(change).await.map_err(|_| Stopped)?;
        Ok(applied.await.map_err(|_| Stopped)?)
    }

    async fn dns_revert(&self) -> Result<Dns, Problem> {
        let (done, reverted) = oneshot::channel();
        let change = Asked::RevertDns(done);
        self.changes.send(change).await.map_err(|_| Stopped)?;
        Ok(reverted.await.map_err(|_| Stopped)?)
    }

    async fn peers(&self, of: OfAgent) -> Result<Peers, Problem> {
        self.handle
            .call(move |core| list::peers(core, of.agent.as_deref()))
            .await?
    }

    async fn whois(&self, query: WhoisQuery) -> Result<Whois, Problem> {
        self.handle
            .call(move |core| list::whois(core, query))
            .await?
    }

    async fn trust_pending(&self, of: OfAgent) -> Result<Pending, Problem> {
        self.handle
            .call(move |core| list::pending(core, of.agent.as_deref()))
            .await?
    }

    async fn trust_list(&self, of: OfAgent) -> Result<TrustList, Problem> {
        self.handle
            .call(move |core| list::trust(core, of.agent.as_deref()))
            .await?
    }

    async fn trust_request(&self, request: TrustRequest) -> Result<TrustChanged, Problem> {
        let TrustRequest {
            agent,
            name,
            allow,
            reason,
        } = request;
        let offered = allow.clone();
        let change: Change = Box::new(move |m, to, unix| m.request(to, allow, reason, unix));
        self.change(agent, name, TrustChange::Requested, Some(offered), change)
            .await
    }

    async fn trust_await(&self, wait: TrustAwait) -> Result<TrustStands, Problem> {
        wait::wait(self, wait).await
    }

    async fn trust_approve(&self, approve: TrustApprove) -> Result<TrustChanged, Problem> {
        let TrustApprove { agent, name, allow } = approve;
        let given = allow.clone();
        let change: Change = Box::new(move |m, from, unix| m.approve(&from, allow, unix).map(drop));
        self.change(agent, name, TrustChange::Approved, Some(given), change)
            .await
    }

    async fn trust_deny(&self, deny: TrustName) -> Result<TrustChanged, Problem> {
        let change: Change = Box::new(|m, from, _| m.deny(&from));
        self.change(deny.agent, deny.name, TrustChange::Denied, None, change)
            .await
    }

    async fn trust_revoke(&self, revoke: TrustName) -> Result<TrustChanged, Problem> {
        let change: Change = Box::new(|m, from, unix| m.revoke(&from, unix).map(drop));
        self.change(
            revoke.agent,
            revoke.name,
            TrustChange::Revoked,
            None,
            change,
        )
        .await
    }

    async fn auto_list(&self, of: OfAgent) -> Result<AutoRules, Problem> {
        self.handle
            .call(move |core| list::auto(core, of.agent.as_deref()))
            .await?
    }

    async fn auto_add(&self, rule: AutoRule) -> Result<AutoRules, Problem> {
        let AutoRule { agent, from, allow } = rule;
        let rule = membership::AutoRule {
            from: selector(from),
            allow,
        };
        self.change_auto(agent, move |m| m.auto_add(rule)).await
    }

    async fn auto_remove(&self, remove: AutoRemove) -> Result<AutoRules, Problem> {
        let from = selector(remove.from);
        self.change_auto(remove.agent, move |m| {
            let found = m.auto.iter().position(|rule| rule.from == from);
            m.auto_remove(found.unwrap_or(usize::MAX)).map(drop)
        })
        .await
    }

    async fn wireguard_list(&self, of: OfAgent) -> Result<WireGuardPeers, Problem> {
        wireguard::peers(self, of).await
    }

    async fn wireguard_add(&self, add: WireGuardAdd) -> Result<WireGuardAdded, Problem> {
        wireguard::add(self, add).await
    }

    async fn wireguard_remove(&self, remove: WireGuardRemove) -> Result<WireGuardRemoved, Problem> {
        wireguard::remove(self, remove).await
    }

    async fn path(&self, query: PathQuery) -> Result<PathReport, Problem> {
        self.handle
            .call(move |core| paths::report(core, &query))
            .await?
    }

    async fn ping(&self, ping: PingRequest) -> Result<PingReply, Problem> {
        ping::ping(self, ping).await
    }

    async fn capture(&self, query: CaptureQuery) -> Result<Pieces, Problem> {
        capture::begin(self, query).await
    }

    async fn log(&self) -> Result<LogLines, Problem> {
        let lines = recent::lines();
        Ok(LogLines { lines })
    }

    async fn metrics(&self) -> Result<Metrics, Problem> {
        let text = metrics::of(self, true).await.ok_or(Stopped)?;
        Ok(Metrics { text })
    }

    async fn join(&self, join: JoinRequest) -> Result<Joined, Problem> {
        let token = join.token.parse::<JoinToken>();
        let token = token.map_err(|error| Problem::with(Code::BadRequest, error))?;
        let placement = Placement {
            apart: join.apart,
            user: join.user,
            bound: join.bound,
        };
        self.join_network(&token, join.name, placement).await
    }

    async fn leave(&self, leave: OfAgent) -> Result<Left, Problem> {
        self.leave_network(leave.agent).await
    }

    async fn down(&self) -> Result<Down, Problem> {
        info!("Asked to stop");
        self.stop.notify_one();
        Ok(Down { stopping: true })
    }
}

impl Node {
    async fn join_network(
        &self,
        token: &JoinToken,
        name: Option<MemberName>,
        placement: Placement,
    ) -> Result<Joined, Problem> {
        if self.is_private {
            let mut problem = Problem::with(Code::Forbidden, "this node runs for one program");
            "name another state directory with --state DIR".clone_into(&mut problem.hint);
            return Err(problem);
        }
        let mut state = self.handle.call(|core| core.engine.state()).await?;
        let (name, identity) = join::identify(token, name, &mut state)?;
        // Before the registry takes it, and a use of the token: there may be no room on the disk.
        let agent = name.to_string();
        let kept = self
            .handle
            .call(move |core| core.keep_identity(agent, identity));
        kept.await?
            .map_err(|error| Problem::with(Code::StateUnsaved, with_causes(&error)))?;
        let mut membership =
            join::join(token, Some(name), &self.suffix, &mut state, clock::unix()).await?;
        membership.placement = placement;
        let joined = join::joined(&membership, true)?;
        let (done, added) = oneshot::channel();
        let change = Asked::Add(Box::new(membership), done);
        self.changes.send(change).await.map_err(|_| Stopped)?;
        match added.await.map_err(|_| Stopped)? {
            Ok(()) => Ok(joined),
            Err(error @ DaemonError::Unsaved(_)) => Err(Problem::with(Code::StateUnsaved, error)),
            Err(error) => {
                let what = format!("{} is a member, but cannot run here: {error}", joined.name);
                Err(Problem::with(Code::Internal, what))
            }
        }
    }

    async fn leave_network(&self, agent: Option<String>) -> Result<Left, Problem> {
        let chosen = self.handle.call(move |core| choose(core, agent.as_deref()));
        let local = chosen.await??;
        let (done, removed) = oneshot::channel();
        self.changes
            .send(Asked::Remove(local, done))
            .await
            .map_err(|_| Stopped)?;
        let gone = removed.await.map_err(|_| Stopped)?;
        let mut membership = gone.ok_or_else(|| Problem::new(Code::NotFound))?;
        let name = membership
            .name()
            .map(|name| name.to_string())
            .unwrap_or_default();
        let told = tokio::time::timeout(FAREWELL, join::leave(&mut membership, clock::unix()));
        Ok(Left {
            name,
            told: matches!(told.await, Ok(Ok(()))),
        })
    }

    async fn change_auto(
        &self,
        agent: Option<String>,
        change: impl FnOnce(&mut Membership) -> Result<(), TrustError> + Send + 'static,
    ) -> Result<AutoRules, Problem> {
        let changed = self.handle.call(move |core| {
            let local = choose(core, agent.as_deref())?;
            let done = core.engine.change(local, now(), |m, _| change(m));
            done.ok_or_else(|| Problem::new(Code::NotFound))??;
            drop(core.settle_now());
            kept(core)?;
            list::auto(core, agent.as_deref())
        });
        changed.await?
    }
}

/// Tells whether what changed is on disk; a command that says ok has done it.
fn kept(core: &Core) -> Result<(), Problem> {
    let Some(why) = core.unsaved() else {
        return Ok(());
    };
    let why = format!("it holds until this daemon stops, or finds room: {why}");
    Err(Problem::with(Code::StateUnsaved, why))
}

/// Tells an operator which way packets take.
pub(super) const fn path_kind(path: Path) -> PathKind {
    match path {
        Path::Direct(_) => PathKind::Direct,
        Path::Relay => PathKind::Relay,
    }
}

fn selector(from: AutoFrom) -> Selector {
    match from {
        AutoFrom::Name(pattern) => Selector::Name(pattern),
        AutoFrom::Tag(tag) => Selector::Tag(tag),
    }
}
