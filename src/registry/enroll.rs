//! Pure: what it takes to become and to stay a member.

use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use thiserror::Error;

use crate::id::{AgentId, Did, IdentityKey, Label, NetworkId, NetworkPrefix, UnixTime};
use crate::registry::store::{Joining, NewRecord, NewToken, RecordRow, Sequence};
use crate::statement::{
    Admission, Authority, Chain, ChainError, EPHEMERAL_NAME, Gate, Grant, Member, Record,
    Revocations, Role, Statement, StatementError, issue, verify_pending_record_of,
    verify_record_of,
};

/// What a registry knows of the network somebody wants to be in.
#[derive(Clone, Copy, Debug)]
pub struct Ground<'a> {
    pub network: &'a NetworkId,
    pub prefix: NetworkPrefix,
    pub label: &'a Label,
    /// The registry's own key.
    pub registry: Did,
    pub revoked: &'a Revocations,
    pub now: UnixTime,
}

/// Who becomes or stays a member, and the chain that proves it, whose signatures cost to check.
#[derive(Clone, Debug)]
pub struct Enrolled {
    pub member: Member,
    pub chain: Chain,
}

/// Why somebody is not, or no longer, a member.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum EnrolError {
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error(transparent)]
    Statement(#[from] StatementError),
    #[error("the root grant has another prefix or name than this registry gave the network")]
    WrongRoot,
    #[error("the token is for another registry")]
    WrongRegistry,
    #[error("the grants do not end in a join token signed by the caller")]
    NotAToken,
}

/// Returns what joining with `record` takes; uniqueness is for the store to decide.
pub fn join(
    record: &Statement<Record>,
    ground: &Ground<'_>,
) -> Result<(Enrolled, Joining), EnrolError> {
    let chain = Chain::parse(&record.claims().chain)?;
    let (network, revoked) = (ground.network, ground.revoked);
    let member = verify_pending_record_of(record, &chain, network, revoked, ground.now)?;
    check_ground(&member.authority, ground)?;
    let joining = Joining {
        network: *ground.network,
        agent: member.agent,
        name: member.name.clone(),
        address: member.address,
        ephemeral: member.authority.ephemeral,
        granted: granted(&chain),
        moves: is_granted_from_above(&chain),
        revoked: None,
        token: token_of(&chain, ground.network),
    };
    Ok((Enrolled { member, chain }, joining))
}

/// Tells whether `holder` of a name was revoked by itself or by one who manages the network.
pub fn is_revoked(holder: &AgentId, revoked: &Revocations) -> bool {
    revoked.of(&holder.did(), Role::Member, &[]).is_some()
}

/// Returns the member a complete `record` proves.
pub fn refresh(record: &Statement<Record>, ground: &Ground<'_>) -> Result<Enrolled, EnrolError> {
    let chain = Chain::parse(&record.claims().chain)?;
    let member = verify_record_of(record, &chain, ground.network, ground.revoked, ground.now)?;
    check_ground(&member.authority, ground)?;
    Ok(Enrolled { member, chain })
}

/// Returns a verified record as the store keeps it.
pub fn kept(record: &Statement<Record>, of: &Enrolled, lease: UnixTime) -> NewRecord {
    let Enrolled { member, chain } = of;
    let grants = chain.grants().iter();
    let links = grants.flat_map(|g| [g.subject().to_string(), g.hash().to_string()]);
    // Peers give the name of an ephemeral agent free that they hear nothing of for a day.
    let anew = member.authority.ephemeral;
    let anew = anew.then(|| record.issued().as_secs() / (EPHEMERAL_NAME / 2).as_secs());
    NewRecord {
        network: member.network,
        row: RecordRow {
            agent: member.agent,
            name: member.name.clone(),
            address: member.address,
            role: member.authority.role,
            text: record.text().to_owned(),
        },
        ephemeral: member.authority.ephemeral,
        granted: granted(chain),
        sequence: Sequence::of(record),
        content: content(&(record.claims(), anew), record.expires()),
        lease,
        links: links.collect(),
    }
}

/// Signs a first admission, or again one whose answer was lost.
pub fn admission(
    registry: &IdentityKey,
    member: &Member,
    gate: &Gate,
    first: UnixTime,
    now: UnixTime,
) -> Result<Statement<Admission>, StatementError> {
    // Before admission a membership is bounded by the links above the token alone.
    issue::admission(registry, member.network, gate, first, now, member.expires)
}

/// Signs a new admission when less than half of the one in the chain is left; None before that.
pub fn renewal(
    registry: &IdentityKey,
    of: &Enrolled,
    now: UnixTime,
) -> Result<Option<Statement<Admission>>, EnrolError> {
    let Enrolled { member, chain } = of;
    let (Some(held), Some(gate)) = (chain.admission(), &member.authority.token) else {
        return Ok(None);
    };
    let life = held.expires().since(held.issued());
    if held.expires().since(now) > life / 2 {
        return Ok(None);
    }
    let above = chain.grants().iter();
    let until = above
        .filter(|grant| grant.claims().role != Role::Token)
        .map(Statement::expires)
        .min();
    let first = gate.first.unwrap_or_else(|| held.claims().first);
    let until = until.unwrap_or_else(|| held.expires());
    let renewed = issue::admission(registry, member.network, gate, first, now, until)?;
    // What the links above bound already would be renewed on every refresh, for nothing.
    Ok((renewed.expires() > held.expires()).then_some(renewed))
}

/// Returns the token that `chain` ends in, which `caller` must have granted.
pub fn token(chain: &Chain, caller: Did, ground: &Ground<'_>) -> Result<NewToken, EnrolError> {
    let authority = chain.authority(ground.network, ground.revoked, ground.now)?;
    check_ground(&authority, ground)?;
    let last = chain.grants().last();
    let granted = last.is_some_and(|g| g.claims().role == Role::Token && g.issuer() == caller);
    if !granted {
        return Err(EnrolError::NotAToken);
    }
    token_of(chain, ground.network).ok_or(EnrolError::NotAToken)
}

/// Returns the root grant's authority if it is what this registry gave the network.
pub fn root(grant: &Statement<Grant>, ground: &Ground<'_>) -> Result<Authority, EnrolError> {
    let chain = Chain::new(vec![grant.clone()], None);
    let authority = chain.authority(ground.network, ground.revoked, ground.now)?;
    check_ground(&authority, ground)?;
    Ok(authority)
}

/// Returns for how long a record is kept that asks for `ttl` seconds.
pub fn lease(ttl: u64, shortest: Duration, longest: Duration) -> Duration {
    Duration::from_secs(ttl).clamp(shortest, longest)
}

/// Returns a hash of what claims say, so that a mere refresh is told from a change.
pub fn content(claims: &impl serde::Serialize, expires: UnixTime) -> String {
    let json = serde_json::to_vec(&(claims, expires)).expect("claims came from JSON");
    URL_SAFE_NO_PAD.encode(digest(&SHA256, &json).as_ref())
}

fn check_ground(authority: &Authority, ground: &Ground<'_>) -> Result<(), EnrolError> {
    if authority.root.prefix != ground.prefix || authority.root.label != *ground.label {
        return Err(EnrolError::WrongRoot);
    }
    let elsewhere = |gate: &Gate| gate.claims.enrol != ground.registry;
    if authority.token.as_ref().is_some_and(elsewhere) {
        return Err(EnrolError::WrongRegistry);
    }
    Ok(())
}

fn granted(chain: &Chain) -> UnixTime {
    chain
        .grants()
        .last()
        .map(Statement::issued)
        .unwrap_or_default()
}

/// Tells whether the last grant was made by an owner's or admin's own key.
fn is_granted_from_above(chain: &Chain) -> bool {
    let [.., above, _] = chain.grants() else {
        return false;
    };
    matches!(above.claims().role, Role::Admin | Role::Owner)
}

fn token_of(chain: &Chain, network: &NetworkId) -> Option<NewToken> {
    let grants = chain.grants();
    let at = grants.iter().position(|g| g.claims().token.is_some())?;
    let grant = grants.get(at)?;
    Some(NewToken {
        network: *network,
        token: grant.subject(),
        grant: grant.text().to_owned(),
        ancestors: grants.iter().take(at + 1).map(Statement::issuer).collect(),
        uses: grant.claims().token.as_ref()?.uses,
        closes: grant.expires(),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::id::{DomainPrefix, MemberName, TunnelSecret};
    use crate::statement::issue::TokenTerms;

    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);
    const DAY: Duration = Duration::from_secs(86_400);

    fn key(n: u8) -> IdentityKey {
        IdentityKey::from_seed([n; 32])
    }

    fn prefix() -> NetworkPrefix {
        DomainPrefix::of(&key(9).did().into()).network(7)
    }

    /// Returns grants of owner 1, token 2 and agent 3.
    fn grants(enrol: u8) -> Vec<Statement<Grant>> {
        let root = issue::root_grant(&key(1), "acme".parse().unwrap(), prefix(), NOW).unwrap();
        let terms = TokenTerms {
            names: vec!["worker-*".parse().unwrap()],
            tags: BTreeSet::new(),
            ephemeral: false,
            uses: 10,
            closes: NOW + DAY,
            life: 90 * DAY,
            enrol: key(enrol).did(),
        };
        let token = issue::token_grant(&key(1), &root, key(2).did(), terms, NOW).unwrap();
        let name = "worker-1".parse::<MemberName>().unwrap();
        let end = root.expires();
        let agent = issue::agent_grant(&key(2), &token, key(3).did(), &name, NOW, end).unwrap();
        vec![root, token, agent]
    }

    fn record(chain: &Chain, now: UnixTime, expires: UnixTime) -> Statement<Record> {
        let claims = Record {
            name: "worker-1".parse().unwrap(),
            tunnel: TunnelSecret::from_seed([3; 32]).public(),
            gateways: vec![],
            chain: chain.links(),
            ttl: 300,
        };
        issue::record(&key(3), network(), now.as_millis(), now, expires, claims).unwrap()
    }

    fn network() -> NetworkId {
        key(1).did().into()
    }

    fn with_ground<T>(now: UnixTime, run: impl FnOnce(&Ground<'_>) -> T) -> T {
        run(&Ground {
            network: &network(),
            prefix: prefix(),
            label: &"acme".parse().unwrap(),
            registry: key(4).did(),
            revoked: &Revocations::default(),
            now,
        })
    }

    fn joined() -> Chain {
        let pending = Chain::new(grants(4), None);
        let (Enrolled { member, .. }, _) =
            with_ground(NOW, |g| join(&record(&pending, NOW, NOW + DAY), g)).unwrap();
        let gate = member.authority.token.clone().unwrap();
        let admission = admission(&key(4), &member, &gate, NOW, NOW).unwrap();
        pending.with_admission(admission)
    }

    #[test]
    fn joining_takes_name_address_and_token() {
        let pending = Chain::new(grants(4), None);

        let (Enrolled { member, .. }, joining) =
            with_ground(NOW, |g| join(&record(&pending, NOW, NOW + DAY), g)).unwrap();

        assert_eq!(joining.agent, AgentId::from(key(3).did()));
        assert_eq!(joining.address, member.address);
        assert!(!joining.moves, "a token moves no name");
        let token = joining.token.unwrap();
        assert_eq!((token.token, token.uses), (key(2).did(), 10));
        assert_eq!(token.ancestors, vec![key(1).did(), key(1).did()]);
    }

    #[test]
    fn a_token_of_another_registry_or_network_is_refused() {
        let elsewhere = Chain::new(grants(5), None);
        let here = Chain::new(grants(4), None);
        let join_at = |chain: &Chain, label: &str| {
            with_ground(NOW, |g| {
                let label = label.parse().unwrap();
                let ground = Ground {
                    label: &label,
                    ..*g
                };
                join(&record(chain, NOW, NOW + DAY), &ground).unwrap_err()
            })
        };

        assert_eq!(join_at(&elsewhere, "acme"), EnrolError::WrongRegistry);
        assert_eq!(join_at(&here, "other"), EnrolError::WrongRoot);
    }

    #[test]
    fn an_admission_is_renewed_in_its_second_half() {
        let chain = joined();
        let renewed = |now: UnixTime| {
            let record = record(&chain, now, now + DAY);
            let refreshed = with_ground(now, |g| refresh(&record, g)).unwrap();
            renewal(&key(4), &refreshed, now).unwrap()
        };

        assert_eq!(renewed(NOW + 44 * DAY), None);
        let later = renewed(NOW + 46 * DAY).unwrap();
        assert_eq!(later.expires(), NOW + 136 * DAY);
        assert_eq!(later.claims().first, NOW);
    }

    #[test]
    fn only_a_change_of_content_is_news() {
        let chain = joined();
        let content_at = |now, expires| {
            let record = record(&chain, now, expires);
            content(record.claims(), record.expires())
        };
        let end = NOW + DAY;

        assert_eq!(
            content_at(NOW, end),
            content_at(NOW + Duration::from_secs(9), end)
        );
        assert_ne!(content_at(NOW, end), content_at(NOW, end + DAY));
    }
}
