use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{Row, query, query_scalar};

use crate::id::{Did, NetworkId, UnixTime};
use crate::registry::store::sqlite::{
    next_domain_version, next_version, number, parsed, signed, take_sequence,
};
use crate::registry::store::{
    Counts, Creation, Kept, NetworkRow, NewNetwork, Sequence, StoreError,
};

const COLUMNS: &str = "SELECT network, label, number, operator, root_grant, revoked FROM networks";

/// Counts what there is; each count is of an index.
pub(super) async fn counts(
    connection: &mut SqliteConnection,
    now: UnixTime,
) -> Result<Counts, StoreError> {
    let row = query(
        "SELECT (SELECT count(*) FROM networks) AS networks, \
         (SELECT count(*) FROM records WHERE lease > ?) AS records, \
         (SELECT count(*) FROM gateways) AS gateways",
    )
    .bind(signed(now.as_millis()))
    .fetch_one(connection)
    .await?;
    Ok(Counts {
        networks: number(&row, "networks")?,
        records: number(&row, "records")?,
        gateways: number(&row, "gateways")?,
    })
}

pub(super) async fn create(
    tx: &mut SqliteConnection,
    new: &NewNetwork,
) -> Result<Creation, StoreError> {
    let id = new.network.to_string();
    if let Some(known) = find(tx, &new.network).await? {
        let same = known.label == new.label && known.operator == new.operator;
        return Ok(if same {
            Creation::Created(known.number)
        } else {
            Creation::Taken
        });
    }
    let label = new.label.to_string();
    let taken = query("SELECT 1 FROM networks WHERE label = ?")
        .bind(&label)
        .fetch_optional(&mut *tx)
        .await?;
    if taken.is_some() {
        return Ok(Creation::Taken);
    }
    let highest = query_scalar::<_, Option<i64>>("SELECT max(number) FROM networks")
        .fetch_one(&mut *tx)
        .await?;
    // Number 0 is infrastructure (protocol.md section 1).
    let Ok(number) = u16::try_from(highest.unwrap_or(0) + 1) else {
        return Ok(Creation::Full);
    };
    query("INSERT INTO networks (network, number, label, operator) VALUES (?, ?, ?, ?)")
        .bind(id)
        .bind(i64::from(number))
        .bind(label)
        .bind(new.operator.to_string())
        .execute(tx)
        .await?;
    Ok(Creation::Created(number))
}

pub(super) async fn activate(
    tx: &mut SqliteConnection,
    network: &NetworkId,
    grant: &str,
    sequence: &Sequence,
) -> Result<Kept, StoreError> {
    let id = network.to_string();
    let kept = take_sequence(tx, &id, sequence).await?;
    if kept == Kept::New {
        let domain_version = next_domain_version(tx).await?;
        next_version(tx, &id).await?;
        query("UPDATE networks SET root_grant = ?, domain_ver = ? WHERE network = ?")
            .bind(grant)
            .bind(domain_version)
            .bind(id)
            .execute(tx)
            .await?;
    }
    Ok(kept)
}

pub(super) async fn find(
    tx: &mut SqliteConnection,
    network: &NetworkId,
) -> Result<Option<NetworkRow>, StoreError> {
    let row = query(sqlx::AssertSqlSafe(format!("{COLUMNS} WHERE network = ?")))
        .bind(network.to_string())
        .fetch_optional(tx)
        .await?;
    row.as_ref().map(read).transpose()
}

pub(super) async fn list(
    tx: &mut SqliteConnection,
    operator: &Did,
    after: u64,
    limit: u32,
) -> Result<Vec<NetworkRow>, StoreError> {
    let sql = format!("{COLUMNS} WHERE operator = ? AND number > ? ORDER BY number LIMIT ?");
    let rows = query(sqlx::AssertSqlSafe(sql))
        .bind(operator.to_string())
        .bind(signed(after))
        .bind(limit)
        .fetch_all(tx)
        .await?;
    rows.iter().map(read).collect()
}

fn read(row: &SqliteRow) -> Result<NetworkRow, StoreError> {
    let stored = number(row, "number")?;
    Ok(NetworkRow {
        network: parsed(row, "network")?,
        label: parsed(row, "label")?,
        number: u16::try_from(stored)
            .map_err(|_| StoreError::Nonsense(format!("network number {stored}")))?,
        operator: parsed(row, "operator")?,
        grant: row.try_get("root_grant")?,
        revoked: number(row, "revoked")?,
    })
}
