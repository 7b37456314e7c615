//! The network's owner: grants, join tokens and revocations, and how agents join by them.

use std::time::Duration;

use agentnet::engine::membership::{LEASE, Membership};
use agentnet::id::{Did, IdentityKey, TunnelSecret, UnixTime};
use agentnet::os::clock;
use agentnet::statement::{
    Chain, Grant, Head, Record, Revocation, Revocations, RevokedKey, Statement,
    issue::{self, TokenTerms},
};

use crate::pair::{OWNER, REGISTRY, key, membership_by, name, network, root_grant};
use crate::world::deployment::Deployment;
use crate::world::registry::Denied;

/// The seed of the join token's key.
const TOKEN: u8 = 204;

/// What the owner keeps.
#[derive(Debug)]
pub(crate) struct Owner {
    root: Statement<Grant>,
    token: Statement<Grant>,
}

impl Owner {
    /// Makes the network, with a token whose members live for `life` after they were last seen.
    pub(crate) fn new(life: Duration) -> Self {
        let unix = clock::unix();
        let root = root_grant(unix);
        let terms = TokenTerms {
            names: vec!["*".parse().unwrap()],
            tags: std::collections::BTreeSet::new(),
            ephemeral: false,
            uses: 1000,
            closes: unix + Duration::from_secs(30 * 86_400),
            life,
            enrol: key(REGISTRY).did(),
        };
        let token = issue::token_grant(&key(OWNER), &root, key(TOKEN).did(), terms, unix).unwrap();
        Self { root, token }
    }

    pub(crate) fn token_key(&self) -> Did {
        self.token.subject()
    }

    /// Signs a revocation of a key.
    pub(crate) fn revocation(&self, of: Did, unix: UnixTime) -> Statement<Revocation> {
        let head = Head {
            subject: network().did(),
            network: Some(network()),
            issued: unix,
            expires: unix + Duration::from_secs(365 * 86_400),
            seq: unix.as_millis(),
        };
        let claims = Revocation {
            keys: vec![RevokedKey { key: of, at: unix }],
            grants: vec![],
            chain: vec![self.root.text().to_owned()],
        };
        Statement::sign(&key(OWNER), head, claims).unwrap()
    }

    /// Makes a membership by the owner's own grant, which lasts for `life`.
    pub(crate) fn grant(
        &self,
        identity: &IdentityKey,
        called: &str,
        tunnel: TunnelSecret,
        life: Duration,
    ) -> Membership {
        let unix = clock::unix();
        let (did, called_) = (identity.did(), name(called));
        let until = unix + life;
        let grant = issue::agent_grant(&key(OWNER), &self.root, did, &called_, unix, until);
        let grant = grant.unwrap();
        let chain = vec![self.root.text().to_owned(), grant.text().to_owned()];
        membership_by(chain, called, identity.clone(), tunnel)
    }

    /// Makes a chain that ends in the agent's own grant by the token; it needs an admission.
    fn pending(&self, identity: &IdentityKey, called: &str, unix: UnixTime) -> Chain {
        let (did, called) = (identity.did(), name(called));
        let end = self.root.expires();
        let grant = issue::agent_grant(&key(TOKEN), &self.token, did, &called, unix, end).unwrap();
        Chain::new(vec![self.root.clone(), self.token.clone(), grant], None)
    }
}

impl Deployment {
    /// Makes an agent a member by the token, as `agentnet join` does; the registry may refuse.
    pub(crate) fn join_by_token(&mut self, host: usize, owner: &Owner) -> Result<(), Denied> {
        let unix = self.true_time().unix;
        let found = &self.hosts[host];
        let (identity, called) = (found.identity.clone(), found.name.clone());
        let chain = owner.pending(&identity, &called, unix);
        let links = chain.links();
        let tunnel = self.new_tunnel(host);
        let mut membership = membership_by(links, &called, identity, tunnel);
        self.recall(host, &mut membership);
        let record = self.first_record(&mut membership, &chain, unix);
        let admission = self.registry.join(&record, unix)?;
        membership.chain = chain.with_admission(admission).links();
        self.add(host, membership);
        Ok(())
    }

    /// Makes an agent a member by the owner's grant.
    pub(crate) fn join_by_grant(&mut self, host: usize, owner: &Owner, life: Duration) {
        self.true_time();
        let tunnel = self.new_tunnel(host);
        let found = &self.hosts[host];
        let mut membership = owner.grant(&found.identity, &found.name, tunnel, life);
        self.recall(host, &mut membership);
        self.add(host, membership);
    }

    fn new_tunnel(&mut self, host: usize) -> TunnelSecret {
        let found = &mut self.hosts[host];
        found.joins += 1;
        let mut seed = [found.joins; 32];
        // Not in the first byte, of which X25519 ignores some bits.
        seed[1] = 10 + u8::try_from(host).expect("at most eight hosts");
        TunnelSecret::from_seed(seed)
    }

    /// Takes up what was seen and said before the network was left.
    fn recall(&self, host: usize, membership: &mut Membership) {
        let mut left = self.hosts[host].disk.left.iter();
        if let Some(left) = left.find(|left| left.is_of(&membership.agent, &membership.network)) {
            membership.recall(left);
        }
    }

    fn first_record(
        &self,
        membership: &mut Membership,
        chain: &Chain,
        unix: UnixTime,
    ) -> Statement<Record> {
        let nothing = Revocations::default();
        let member = chain.verify_pending(&membership.network, &nothing, unix);
        let member = member.expect("the owner made the chain");
        let now = membership.clock(unix);
        membership.seq = now.as_millis().max(membership.seq + 1);
        let claims = Record {
            name: member.name.clone(),
            tunnel: membership.tunnel.public(),
            gateways: Vec::new(),
            chain: membership.chain.clone(),
            ttl: LEASE.as_secs(),
        };
        let (identity, seq) = (&membership.identity, membership.seq);
        let record = issue::record(identity, network(), seq, now, member.expires, claims);
        record.expect("a record fits a statement")
    }

    fn add(&mut self, host: usize, membership: Membership) {
        self.with(host, |engine, _, time| engine.add(membership, time));
        self.hosts[host].link.cursor = None;
    }

    /// Has an agent leave: its gateway is told, and the registry if it can be.
    pub(crate) fn leave(&mut self, host: usize, is_told: bool) {
        let agent = self.hosts[host].identity.did().into();
        if is_told {
            self.registry.leave(agent);
        }
        self.with(host, |engine, local, time| drop(engine.remove(local, time)));
        self.hosts[host].link.is_connected = false;
        self.hosts[host].link.wake = None;
    }
}
