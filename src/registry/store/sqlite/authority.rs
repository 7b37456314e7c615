use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{query, query_scalar};

use crate::id::{Did, NetworkId, UnixTime};
use crate::registry::store::sqlite::{
    millis, next_domain_version, next_version, number, parsed, signed, text,
};
use crate::registry::store::{Kept, NewGateway, NewRevocation, NewToken, StoreError, TokenRow};

/// Most tokens of one network.
const MAX_TOKENS: i64 = 10_000;

/// Most revocations of one network; each may name many keys.
const MAX_REVOCATIONS: i64 = 4096;

/// Most revocations of one member, who can only revoke itself and those below it.
const MAX_OWN: i64 = 16;

pub(super) async fn put_token(
    tx: &mut SqliteConnection,
    new: &NewToken,
) -> Result<Kept, StoreError> {
    let network = new.network.to_string();
    let others =
        query_scalar::<_, i64>("SELECT count(*) FROM tokens WHERE network = ? AND token <> ?")
            .bind(&network)
            .bind(new.token.to_string())
            .fetch_one(&mut *tx)
            .await?;
    if others >= MAX_TOKENS {
        return Ok(Kept::Full);
    }
    let ancestors = new.ancestors.iter().map(Did::to_string);
    query(
        "INSERT INTO tokens (network, token, token_grant, ancestors, uses, used, closes)
         VALUES (?, ?, ?, ?, ?, 0, ?)
         ON CONFLICT (network, token) DO UPDATE
         SET token_grant = excluded.token_grant, ancestors = excluded.ancestors,
             uses = excluded.uses, closes = excluded.closes",
    )
    .bind(network)
    .bind(new.token.to_string())
    .bind(&new.grant)
    .bind(ancestors.collect::<Vec<_>>().join(" "))
    .bind(i64::from(new.uses))
    .bind(millis(new.closes))
    .execute(tx)
    .await?;
    Ok(Kept::New)
}

pub(super) async fn tokens(
    tx: &mut SqliteConnection,
    network: &NetworkId,
    after: u64,
    limit: u32,
) -> Result<Vec<TokenRow>, StoreError> {
    let rows = query(
        "SELECT id, token, token_grant, ancestors, uses, used FROM tokens
         WHERE network = ? AND id > ? ORDER BY id LIMIT ?",
    )
    .bind(network.to_string())
    .bind(signed(after))
    .bind(limit)
    .fetch_all(tx)
    .await?;
    rows.iter().map(read_token).collect()
}

fn read_token(row: &SqliteRow) -> Result<TokenRow, StoreError> {
    let count = |column| number(row, column).map(|n| u32::try_from(n).unwrap_or(u32::MAX));
    let ancestors = text(row, "ancestors")?;
    let ancestors = ancestors.split(' ').map(str::parse::<Did>);
    Ok(TokenRow {
        id: number(row, "id")?,
        token: parsed(row, "token")?,
        grant: text(row, "token_grant")?,
        ancestors: ancestors
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| StoreError::Nonsense("the keys above a token".to_owned()))?,
        uses: count("uses")?,
        used: count("used")?,
    })
}

pub(super) async fn add_revocation(
    tx: &mut SqliteConnection,
    new: &NewRevocation,
    now: UnixTime,
) -> Result<Kept, StoreError> {
    let network = new.network.to_string();
    let known = query("SELECT 1 FROM revocations WHERE network = ? AND hash = ?")
        .bind(&network)
        .bind(&new.hash)
        .fetch_optional(&mut *tx)
        .await?;
    if known.is_some() {
        return Ok(Kept::Same);
    }
    let (all, own) = sqlx::query_as::<_, (i64, i64)>(
        "SELECT count(*), count(CASE author WHEN ?2 THEN 1 END) FROM revocations
         WHERE network = ?1",
    )
    .bind(&network)
    .bind(new.author.to_string())
    .fetch_one(&mut *tx)
    .await?;
    // Members fill half at most, so that they never keep the owner from revoking.
    let full = if new.manages {
        all >= MAX_REVOCATIONS
    } else {
        all >= MAX_REVOCATIONS / 2 || own >= MAX_OWN
    };
    if full {
        return Ok(Kept::Full);
    }
    let version = next_version(tx, &network).await?;
    let domain_version = next_domain_version(tx).await?;
    query(
        "INSERT INTO revocations (network, hash, author, text, accepted, ver, domain_ver)
         VALUES (?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(&network)
    .bind(&new.hash)
    .bind(new.author.to_string())
    .bind(&new.text)
    .bind(millis(now))
    .bind(version)
    .bind(domain_version)
    .execute(&mut *tx)
    .await?;
    query("UPDATE networks SET revoked = revoked + 1 WHERE network = ?")
        .bind(network)
        .execute(tx)
        .await?;
    Ok(Kept::New)
}

pub(super) async fn revocations(
    tx: &mut SqliteConnection,
    network: &NetworkId,
) -> Result<Vec<(UnixTime, String)>, StoreError> {
    let rows = query("SELECT accepted, text FROM revocations WHERE network = ? ORDER BY ver")
        .bind(network.to_string())
        .fetch_all(tx)
        .await?;
    let read = |row: &SqliteRow| {
        Ok((
            UnixTime::from_millis(number(row, "accepted")?),
            text(row, "text")?,
        ))
    };
    rows.iter().map(read).collect()
}

pub(super) async fn put_gateway(
    tx: &mut SqliteConnection,
    new: &NewGateway,
) -> Result<(), StoreError> {
    let gateway = new.gateway.to_string();
    let held = query("SELECT content, domain_ver FROM gateways WHERE gateway = ?")
        .bind(&gateway)
        .fetch_optional(&mut *tx)
        .await?;
    let version = match &held {
        Some(held) if text(held, "content")? == new.content => signed(number(held, "domain_ver")?),
        Some(_) | None => next_domain_version(tx).await?,
    };
    query(
        "INSERT OR REPLACE INTO gateways (gateway, text, content, lease, domain_ver)
         VALUES (?, ?, ?, ?, ?)",
    )
    .bind(gateway)
    .bind(&new.text)
    .bind(&new.content)
    .bind(millis(new.lease))
    .bind(version)
    .execute(tx)
    .await?;
    Ok(())
}

pub(super) async fn is_gateway(
    tx: &mut SqliteConnection,
    gateway: &Did,
) -> Result<bool, StoreError> {
    let row = query("SELECT 1 FROM gateways WHERE gateway = ?")
        .bind(gateway.to_string())
        .fetch_optional(tx)
        .await?;
    Ok(row.is_some())
}

pub(super) async fn gateways(
    tx: &mut SqliteConnection,
    now: UnixTime,
) -> Result<Vec<String>, StoreError> {
    let rows = query("SELECT text FROM gateways WHERE lease > ? ORDER BY gateway LIMIT 64")
        .bind(millis(now))
        .fetch_all(tx)
        .await?;
    rows.iter().map(|row| text(row, "text")).collect()
}
