use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{query, query_scalar};

use crate::id::{AgentId, MemberName, NetworkId, OverlayIp, UnixTime};
use crate::registry::store::sqlite::{
    authority, millis, next_version, number, parsed, signed, take_sequence, text,
};
use crate::registry::store::{JoinOutcome, Joining, Kept, NewRecord, RecordRow, StoreError, Whom};
use crate::statement::{EPHEMERAL_NAME, Role};

/// Most names bound to one key in one network; more are a mistake or an attack.
const MAX_NAMES: i64 = 8;

/// Who asks for a name.
struct Claim<'a> {
    network: String,
    agent: String,
    name: &'a MemberName,
    address: OverlayIp,
    ephemeral: bool,
    granted: UnixTime,
    /// Whether the grant takes the name from a holder of an earlier one.
    moves: bool,
    /// A holder that was revoked, who keeps nobody from its name; None where there is none.
    revoked: Option<String>,
}

pub(super) async fn join(
    tx: &mut SqliteConnection,
    joining: &Joining,
    now: UnixTime,
) -> Result<JoinOutcome, StoreError> {
    let claim = Claim {
        network: joining.network.to_string(),
        agent: joining.agent.to_string(),
        name: &joining.name,
        address: joining.address,
        ephemeral: joining.ephemeral,
        granted: joining.granted,
        moves: joining.moves,
        revoked: joining.revoked.map(|holder| holder.to_string()),
    };
    if let Some(refused) = bind(tx, &claim, now).await? {
        return Ok(refused);
    }
    let Some(token) = &joining.token else {
        return Ok(JoinOutcome::Admitted { first: now });
    };
    if authority::put_token(tx, token).await? == Kept::Full {
        return Ok(JoinOutcome::Full);
    }
    let uses = token.uses;
    let (token, name) = (token.token.to_string(), joining.name.to_string());
    let known = query_scalar::<_, i64>(
        "SELECT first FROM admissions
         WHERE network = ? AND agent = ? AND name = ? AND token = ?",
    )
    .bind(&claim.network)
    .bind(&claim.agent)
    .bind(&name)
    .bind(&token)
    .fetch_optional(&mut *tx)
    .await?;
    // One who asks again, its answer lost, takes no second use.
    if let Some(first) = known {
        let first = UnixTime::from_millis(u64::try_from(first).unwrap_or_default());
        return Ok(JoinOutcome::Admitted { first });
    }
    let taken =
        query("UPDATE tokens SET used = used + 1 WHERE network = ? AND token = ? AND used < ?")
            .bind(&claim.network)
            .bind(&token)
            .bind(i64::from(uses))
            .execute(&mut *tx)
            .await?;
    if taken.rows_affected() == 0 {
        return Ok(JoinOutcome::UsedUp);
    }
    query(
        "INSERT INTO admissions (network, agent, name, token, first) VALUES (?, ?, ?, ?, ?)
         ON CONFLICT (network, agent, name) DO UPDATE
         SET token = excluded.token, first = excluded.first",
    )
    .bind(&claim.network)
    .bind(&claim.agent)
    .bind(name)
    .bind(token)
    .bind(millis(now))
    .execute(tx)
    .await?;
    Ok(JoinOutcome::Admitted { first: now })
}

/// Binds name and interface id to the agent; returns why not, or None when they are its own now.
async fn bind(
    tx: &mut SqliteConnection,
    claim: &Claim<'_>,
    now: UnixTime,
) -> Result<Option<JoinOutcome>, StoreError> {
    let name = claim.name.to_string();
    let holder =
        query("SELECT agent, ephemeral, granted, seen FROM names WHERE network = ? AND name = ?")
            .bind(&claim.network)
            .bind(&name)
            .fetch_optional(&mut *tx)
            .await?;
    if let Some(row) = holder {
        let holder = text(&row, "agent")?;
        if holder != claim.agent {
            let seen = UnixTime::from_millis(number(&row, "seen")?);
            let free = number(&row, "ephemeral")? == 1 && now.since(seen) > EPHEMERAL_NAME;
            let later = signed(number(&row, "granted")?) < millis(claim.granted);
            let gone = claim.revoked.as_ref() == Some(&holder);
            if !(free || gone || claim.moves && later) {
                return Ok(Some(JoinOutcome::NameTaken));
            }
            forget_as(tx, &claim.network, &holder, &name).await?;
        }
    }
    let names = query_scalar::<_, i64>(
        "SELECT count(*) FROM names WHERE network = ? AND agent = ? AND name <> ?",
    )
    .bind(&claim.network)
    .bind(&claim.agent)
    .bind(&name)
    .fetch_one(&mut *tx)
    .await?;
    if names >= MAX_NAMES {
        return Ok(Some(JoinOutcome::Full));
    }
    let address = claim.address.to_string();
    query("INSERT INTO iids (network, address, agent) VALUES (?, ?, ?) ON CONFLICT DO NOTHING")
        .bind(&claim.network)
        .bind(&address)
        .bind(&claim.agent)
        .execute(&mut *tx)
        .await?;
    let owner =
        query_scalar::<_, String>("SELECT agent FROM iids WHERE network = ? AND address = ?")
            .bind(&claim.network)
            .bind(&address)
            .fetch_one(&mut *tx)
            .await?;
    if owner != claim.agent {
        return Ok(Some(JoinOutcome::AddressTaken));
    }
    query(
        "INSERT INTO names (network, name, agent, ephemeral, granted, seen)
         VALUES (?, ?, ?, ?, ?, ?)
         ON CONFLICT (network, name) DO UPDATE
         SET agent = excluded.agent, ephemeral = excluded.ephemeral,
             granted = excluded.granted, seen = excluded.seen",
    )
    .bind(&claim.network)
    .bind(name)
    .bind(&claim.agent)
    .bind(claim.ephemeral)
    .bind(millis(claim.granted))
    .bind(millis(now))
    .execute(tx)
    .await?;
    Ok(None)
}

pub(super) async fn put_record(
    tx: &mut SqliteConnection,
    new: &NewRecord,
    now: UnixTime,
) -> Result<Kept, StoreError> {
    let row = &new.row;
    let (network, agent) = (new.network.to_string(), row.agent.to_string());
    let kept = take_sequence(tx, &network, &new.sequence).await?;
    if kept != Kept::New {
        return Ok(kept);
    }
    let claim = Claim {
        network: network.clone(),
        agent: agent.clone(),
        name: &row.name,
        address: row.address,
        ephemeral: new.ephemeral,
        granted: new.granted,
        // Only joining moves a name, or two holders would take it from each other for ever.
        moves: false,
        revoked: None,
    };
    match bind(tx, &claim, now).await? {
        None => {}
        Some(JoinOutcome::Full) => return Ok(Kept::Full),
        Some(_) => return Ok(Kept::NameTaken),
    }
    let held = query("SELECT content, ver FROM records WHERE network = ? AND agent = ?")
        .bind(&network)
        .bind(&agent)
        .fetch_optional(&mut *tx)
        .await?;
    let same = match &held {
        Some(held) if text(held, "content")? == new.content => Some(number(held, "ver")?),
        Some(_) | None => None,
    };
    let version = match same {
        Some(version) => signed(version),
        None => next_version(tx, &network).await?,
    };
    query(
        "INSERT OR REPLACE INTO records
         (network, agent, name, address, role, text, content, lease, ver)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(&network)
    .bind(&agent)
    .bind(row.name.to_string())
    .bind(row.address.to_string())
    .bind(role_name(row.role))
    .bind(&row.text)
    .bind(&new.content)
    .bind(millis(new.lease))
    .bind(version)
    .execute(&mut *tx)
    .await?;
    if same.is_some() {
        return Ok(Kept::Refreshed);
    }
    put_links(tx, &network, &agent, &new.links).await?;
    Ok(Kept::New)
}

async fn put_links(
    tx: &mut SqliteConnection,
    network: &str,
    agent: &str,
    links: &[String],
) -> Result<(), StoreError> {
    query("DELETE FROM links WHERE network = ? AND agent = ?")
        .bind(network)
        .bind(agent)
        .execute(&mut *tx)
        .await?;
    for link in links {
        query("INSERT OR IGNORE INTO links (network, link, agent) VALUES (?, ?, ?)")
            .bind(network)
            .bind(link)
            .bind(agent)
            .execute(&mut *tx)
            .await?;
    }
    Ok(())
}

pub(super) async fn drop_records(
    tx: &mut SqliteConnection,
    network: &NetworkId,
    agents: &[AgentId],
) -> Result<(), StoreError> {
    let network = network.to_string();
    for agent in agents {
        forget(tx, &network, &agent.to_string()).await?;
    }
    Ok(())
}

/// Forgets the holder's record if it is the one of this name; under others it stays.
async fn forget_as(
    tx: &mut SqliteConnection,
    network: &str,
    holder: &str,
    name: &str,
) -> Result<(), StoreError> {
    let shown = query("SELECT 1 FROM records WHERE network = ? AND agent = ? AND name = ?")
        .bind(network)
        .bind(holder)
        .bind(name)
        .fetch_optional(&mut *tx)
        .await?;
    match shown {
        Some(_) => forget(tx, network, holder).await,
        None => Ok(()),
    }
}

/// Forgets an agent's record and what it came through.
pub(super) async fn forget(
    tx: &mut SqliteConnection,
    network: &str,
    agent: &str,
) -> Result<(), StoreError> {
    query("DELETE FROM records WHERE network = ? AND agent = ?")
        .bind(network)
        .bind(agent)
        .execute(&mut *tx)
        .await?;
    put_links(tx, network, agent, &[]).await
}

pub(super) async fn find(
    tx: &mut SqliteConnection,
    network: &NetworkId,
    agent: &AgentId,
    now: UnixTime,
) -> Result<Option<RecordRow>, StoreError> {
    let row = query("SELECT * FROM records WHERE network = ? AND agent = ? AND lease > ?")
        .bind(network.to_string())
        .bind(agent.to_string())
        .bind(millis(now))
        .fetch_optional(tx)
        .await?;
    row.as_ref().map(read).transpose()
}

const VISIBLE_AT: &str = "SELECT text FROM records r
     WHERE network = ?1 AND address = ?2 AND lease > ?4
     AND (agent = ?3 OR EXISTS (SELECT 1 FROM consents c
          WHERE c.network = ?1 AND c.issuer = r.agent AND c.subject = ?3
          AND c.active = 1 AND c.expires > ?4))";

const VISIBLE_CALLED: &str = "SELECT text FROM records r
     WHERE network = ?1 AND name = ?2 AND lease > ?4
     AND (agent = ?3 OR EXISTS (SELECT 1 FROM consents c
          WHERE c.network = ?1 AND c.issuer = r.agent AND c.subject = ?3
          AND c.active = 1 AND c.expires > ?4))";

pub(super) async fn find_visible(
    tx: &mut SqliteConnection,
    network: &NetworkId,
    (whom, asker): (&Whom, &AgentId),
    now: UnixTime,
) -> Result<Option<String>, StoreError> {
    let (sql, key) = match whom {
        Whom::Address(address) => (VISIBLE_AT, address.to_string()),
        Whom::Name(name) => (VISIBLE_CALLED, name.to_string()),
    };
    let row = query(sql)
        .bind(network.to_string())
        .bind(key)
        .bind(asker.to_string())
        .bind(millis(now))
        .fetch_optional(tx)
        .await?;
    row.as_ref().map(|row| text(row, "text")).transpose()
}

pub(super) async fn through(
    tx: &mut SqliteConnection,
    network: &NetworkId,
    links: &[String],
) -> Result<Vec<RecordRow>, StoreError> {
    let network = network.to_string();
    let mut found = Vec::new();
    for link in links {
        let rows = query(
            "SELECT r.* FROM links l JOIN records r ON r.network = l.network AND r.agent = l.agent
             WHERE l.network = ? AND l.link = ?",
        )
        .bind(&network)
        .bind(link)
        .fetch_all(&mut *tx)
        .await?;
        for row in &rows {
            found.push(read(row)?);
        }
    }
    Ok(found)
}

pub(super) async fn names_of(
    tx: &mut SqliteConnection,
    network: &NetworkId,
    agent: &AgentId,
) -> Result<Vec<MemberName>, StoreError> {
    let rows = query("SELECT name FROM names WHERE network = ? AND agent = ?")
        .bind(network.to_string())
        .bind(agent.to_string())
        .fetch_all(tx)
        .await?;
    rows.iter().map(|row| parsed(row, "name")).collect()
}

pub(super) async fn holder(
    tx: &mut SqliteConnection,
    network: &NetworkId,
    name: &MemberName,
) -> Result<Option<AgentId>, StoreError> {
    let row = query("SELECT agent FROM names WHERE network = ? AND name = ?")
        .bind(network.to_string())
        .bind(name.to_string())
        .fetch_optional(tx)
        .await?;
    row.as_ref().map(|row| parsed(row, "agent")).transpose()
}

/// Forgets what is over, and returns when the next lease or statement ends.
pub(super) async fn expire(
    tx: &mut SqliteConnection,
    now: UnixTime,
) -> Result<Option<UnixTime>, StoreError> {
    let now = millis(now);
    // The end of a lease is when the agent was last seen alive.
    query(
        "UPDATE names SET seen = max(seen, r.lease) FROM records r
         WHERE r.network = names.network AND r.agent = names.agent AND r.lease <= ?",
    )
    .bind(now)
    .execute(&mut *tx)
    .await?;
    for sql in [
        "DELETE FROM links WHERE (network, agent) IN
         (SELECT network, agent FROM records WHERE lease <= ?)",
        "DELETE FROM records WHERE lease <= ?",
        "DELETE FROM requests WHERE expires <= ?",
        "DELETE FROM consents WHERE expires <= ?",
        "DELETE FROM farewells_to WHERE (network, agent) IN
         (SELECT network, agent FROM farewells WHERE expires <= ?)",
        "DELETE FROM farewells WHERE expires <= ?",
        "DELETE FROM seqs WHERE keep <= ?",
    ] {
        query(sql).bind(now).execute(&mut *tx).await?;
    }
    let next = query_scalar::<_, Option<i64>>(
        "SELECT min(at) FROM (SELECT min(lease) AS at FROM records
         UNION ALL SELECT min(expires) FROM requests
         UNION ALL SELECT min(expires) FROM consents
         UNION ALL SELECT min(expires) FROM farewells)",
    )
    .fetch_one(tx)
    .await?;
    Ok(next
        .and_then(|at| u64::try_from(at).ok())
        .map(UnixTime::from_millis))
}

fn read(row: &SqliteRow) -> Result<RecordRow, StoreError> {
    Ok(RecordRow {
        agent: parsed(row, "agent")?,
        name: parsed(row, "name")?,
        address: parsed(row, "address")?,
        role: role_of(&text(row, "role")?)?,
        text: text(row, "text")?,
    })
}

const ROLES: [(Role, &str); 5] = [
    (Role::Admin, "admin"),
    (Role::Auditor, "auditor"),
    (Role::Member, "member"),
    (Role::Owner, "owner"),
    (Role::Token, "token"),
];

fn role_name(role: Role) -> &'static str {
    let found = ROLES.iter().find(|(r, _)| *r == role);
    found.map_or("member", |(_, name)| name)
}

fn role_of(name: &str) -> Result<Role, StoreError> {
    let found = ROLES.iter().find(|(_, n)| *n == name);
    found
        .map(|(role, _)| *role)
        .ok_or_else(|| StoreError::Nonsense(format!("a role `{name}`")))
}
