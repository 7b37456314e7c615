use sqlx::sqlite::SqliteConnection;
use sqlx::{query, query_scalar};

use crate::id::{AgentId, NetworkId, UnixTime};
use crate::registry::store::sqlite::{millis, next_version, parsed, take_sequence};
use crate::registry::store::{Kept, NewConsent, NewRequest, StoreError};

/// Most requests that wait for one name, and most that one agent has waiting; the oldest make room.
const MAX_REQUESTS: i64 = 64;

/// Most peers one agent may have consents toward; far above what a node holds sessions with.
const MAX_CONSENTS: i64 = 4096;

pub(super) async fn put_request(
    tx: &mut SqliteConnection,
    new: &NewRequest,
    now: UnixTime,
) -> Result<Kept, StoreError> {
    let network = new.network.to_string();
    let kept = take_sequence(tx, &network, &new.sequence).await?;
    if kept != Kept::New {
        return Ok(kept);
    }
    let version = next_version(tx, &network).await?;
    let (target, issuer) = (new.target.to_string(), new.sequence.issuer.to_string());
    query(
        "INSERT OR REPLACE INTO requests (network, target, issuer, text, expires, ver)
         VALUES (?, ?, ?, ?, ?, ?)",
    )
    .bind(&network)
    .bind(&target)
    .bind(&issuer)
    .bind(&new.text)
    .bind(millis(new.expires))
    .bind(version)
    .execute(&mut *tx)
    .await?;
    query("DELETE FROM requests WHERE network = ? AND expires <= ?")
        .bind(&network)
        .bind(millis(now))
        .execute(&mut *tx)
        .await?;
    for (sql, key) in [
        (
            "DELETE FROM requests WHERE network = ?1 AND target = ?2 AND ver NOT IN
             (SELECT ver FROM requests WHERE network = ?1 AND target = ?2
              ORDER BY ver DESC LIMIT ?3)",
            target,
        ),
        (
            "DELETE FROM requests WHERE network = ?1 AND issuer = ?2 AND ver NOT IN
             (SELECT ver FROM requests WHERE network = ?1 AND issuer = ?2
              ORDER BY ver DESC LIMIT ?3)",
            issuer,
        ),
    ] {
        query(sql)
            .bind(&network)
            .bind(key)
            .bind(MAX_REQUESTS)
            .execute(&mut *tx)
            .await?;
    }
    Ok(Kept::New)
}

pub(super) async fn put_consent(
    tx: &mut SqliteConnection,
    new: &NewConsent,
    now: UnixTime,
) -> Result<Kept, StoreError> {
    let network = new.network.to_string();
    let kept = take_sequence(tx, &network, &new.sequence).await?;
    if kept != Kept::New {
        return Ok(kept);
    }
    let issuer = new.sequence.issuer.to_string();
    let subject = new.sequence.subject.to_string();
    let others = query_scalar::<_, i64>(
        "SELECT count(*) FROM consents
         WHERE network = ? AND issuer = ? AND subject <> ? AND expires > ?",
    )
    .bind(&network)
    .bind(&issuer)
    .bind(&subject)
    .bind(millis(now))
    .fetch_one(&mut *tx)
    .await?;
    if others >= MAX_CONSENTS {
        return Ok(Kept::Full);
    }
    let version = next_version(tx, &network).await?;
    query(
        "INSERT OR REPLACE INTO consents (network, issuer, subject, active, text, expires, ver)
         VALUES (?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(network)
    .bind(issuer)
    .bind(subject)
    .bind(new.active)
    .bind(&new.text)
    .bind(millis(new.sequence.keep))
    .bind(version)
    .execute(tx)
    .await?;
    Ok(Kept::New)
}

pub(super) async fn consented(
    tx: &mut SqliteConnection,
    network: &NetworkId,
    issuer: &AgentId,
    now: UnixTime,
) -> Result<Vec<AgentId>, StoreError> {
    let rows = query(
        "SELECT subject FROM consents
         WHERE network = ? AND issuer = ? AND active = 1 AND expires > ?",
    )
    .bind(network.to_string())
    .bind(issuer.to_string())
    .bind(millis(now))
    .fetch_all(tx)
    .await?;
    rows.iter().map(|row| parsed(row, "subject")).collect()
}
