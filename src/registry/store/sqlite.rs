//! The store on one SQLite file: one connection writes, several read.

mod authority;
mod changes;
mod departures;
mod members;
mod networks;
mod schema;
mod trust;

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use sqlx::pool::PoolOptions;
use sqlx::sqlite::{
    Sqlite, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteRow, SqliteSynchronous,
};
use sqlx::{Connection, Pool, Row, Transaction};

use crate::id::{AgentId, Did, MemberName, NetworkId, UnixTime};
use crate::registry::store::{
    Counts, Creation, Departure, Farewell, JoinOutcome, Joining, Kept, NetworkRow, NewConsent,
    NewGateway, NewNetwork, NewRecord, NewRequest, NewRevocation, NewToken, Page, RecordRow,
    Sequence, Store, StoreError, TokenRow, Whom,
};

use schema::MIGRATIONS;

/// Readers beside the one writer; look-ups are short, so a few serve many callers.
const READERS: u32 = 4;

/// A registry's memory in one SQLite file.
#[derive(Debug)]
pub struct SqliteStore {
    path: PathBuf,
    epoch: String,
    writer: Pool<Sqlite>,
    readers: Pool<Sqlite>,
}

impl SqliteStore {
    /// Makes a new database that `epoch`, a random text, tells from every other.
    pub async fn create(path: &Path, epoch: &str) -> Result<Self, StoreError> {
        // SQLite gives its side files the mode of the first, which tells who trusts whom.
        let made = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path);
        made.map_err(|error| StoreError::Database(error.into()))?;
        let writer = pool(path, 1).await?;
        migrate(&writer, path).await?;
        sqlx::query("INSERT INTO meta (one, epoch, ver) VALUES (1, ?, 0)")
            .bind(epoch)
            .execute(&writer)
            .await?;
        writer.close().await;
        Self::open(path).await
    }

    /// Opens a database; one that is missing, damaged or too new is an error and stays as it is.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        if !path.exists() {
            return Err(StoreError::Missing(path.to_owned()));
        }
        let damaged = |why: String| StoreError::Damaged {
            path: path.to_owned(),
            why,
        };
        let writer = pool(path, 1)
            .await
            .map_err(|error| damaged(error.to_string()))?;
        let sound = sqlx::query_scalar::<_, String>("PRAGMA quick_check(1)")
            .fetch_one(&writer)
            .await
            .map_err(|error| damaged(error.to_string()))?;
        if sound != "ok" {
            return Err(damaged(sound));
        }
        migrate(&writer, path).await?;
        let epoch = sqlx::query_scalar::<_, String>("SELECT epoch FROM meta")
            .fetch_optional(&writer)
            .await?
            .ok_or_else(|| damaged("it was never set up".to_owned()))?;
        Ok(Self {
            path: path.to_owned(),
            epoch,
            writer,
            readers: pool(path, READERS).await?,
        })
    }

    /// Closes the database so that its file is whole by itself.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    /// Returns where the database is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Begins a transaction that may write.
    async fn begin(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        Ok(self.writer.begin_with("BEGIN IMMEDIATE").await?)
    }
}

async fn pool(path: &Path, connections: u32) -> Result<Pool<Sqlite>, StoreError> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        // What was answered is kept, through a power cut too: a use of a token is taken once.
        .synchronous(SqliteSynchronous::Full);
    let pool = PoolOptions::new()
        .max_connections(connections)
        // A disk without room ends a transaction, which sqlx then takes for a running one for ever.
        .before_acquire(|connection: &mut SqliteConnection, _| {
            let is_sound = !connection.is_in_transaction();
            Box::pin(async move { Ok(is_sound) })
        })
        .connect_with(options);
    Ok(pool.await?)
}

async fn migrate(writer: &Pool<Sqlite>, path: &Path) -> Result<(), StoreError> {
    let known = i64::try_from(MIGRATIONS.len()).expect("a handful of migrations");
    let found = sqlx::query_scalar::<_, i64>("PRAGMA user_version")
        .fetch_one(writer)
        .await?;
    if found > known {
        return Err(StoreError::Newer {
            path: path.to_owned(),
            found,
            known,
        });
    }
    let done = usize::try_from(found).unwrap_or(0);
    for (i, step) in MIGRATIONS.iter().enumerate().skip(done) {
        let mut tx = writer.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::raw_sql(*step).execute(&mut *tx).await?;
        let version = format!("PRAGMA user_version = {}", i + 1);
        sqlx::raw_sql(sqlx::AssertSqlSafe(version))
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
    }
    Ok(())
}

/// Runs a function of one transaction that writes, and commits what it did.
macro_rules! write {
    ($store:ident, $call:expr) => {{
        let mut tx = $store.begin().await?;
        let done = $call(&mut tx).await?;
        tx.commit().await?;
        Ok(done)
    }};
}

#[async_trait]
impl Store for SqliteStore {
    fn epoch(&self) -> &str {
        &self.epoch
    }

    async fn check(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT ver FROM meta")
            .fetch_one(&self.readers)
            .await?;
        Ok(())
    }

    async fn counts(&self, now: UnixTime) -> Result<Counts, StoreError> {
        networks::counts(&mut *self.readers.acquire().await?, now).await
    }

    async fn create_network(&self, new: &NewNetwork) -> Result<Creation, StoreError> {
        write!(self, async |tx| networks::create(tx, new).await)
    }

    async fn activate_network(
        &self,
        network: &NetworkId,
        grant: &str,
        sequence: &Sequence,
    ) -> Result<Kept, StoreError> {
        write!(self, async |tx| networks::activate(
            tx, network, grant, sequence
        )
        .await)
    }

    async fn network(&self, network: &NetworkId) -> Result<Option<NetworkRow>, StoreError> {
        networks::find(&mut *self.readers.acquire().await?, network).await
    }

    async fn networks(
        &self,
        operator: &Did,
        after: u64,
        limit: u32,
    ) -> Result<Vec<NetworkRow>, StoreError> {
        networks::list(&mut *self.readers.acquire().await?, operator, after, limit).await
    }

    async fn join(&self, joining: &Joining, now: UnixTime) -> Result<JoinOutcome, StoreError> {
        let mut tx = self.begin().await?;
        let outcome = members::join(&mut tx, joining, now).await?;
        // Whatever was refused, what came before it is undone with the transaction.
        if matches!(outcome, JoinOutcome::Admitted { .. }) {
            tx.commit().await?;
        }
        Ok(outcome)
    }

    async fn put_record(&self, new: &NewRecord, now: UnixTime) -> Result<Kept, StoreError> {
        let mut tx = self.begin().await?;
        let kept = members::put_record(&mut tx, new, now).await?;
        if !matches!(kept, Kept::NameTaken | Kept::Full) {
            tx.commit().await?;
        }
        Ok(kept)
    }

    async fn leave(&self, farewell: &Farewell, now: UnixTime) -> Result<Departure, StoreError> {
        write!(self, async |tx| departures::leave(tx, farewell, now).await)
    }

    async fn drop_records(
        &self,
        network: &NetworkId,
        agents: &[AgentId],
    ) -> Result<(), StoreError> {
        write!(self, async |tx| members::drop_records(tx, network, agents)
            .await)
    }

    async fn record(
        &self,
        network: &NetworkId,
        agent: &AgentId,
        now: UnixTime,
    ) -> Result<Option<RecordRow>, StoreError> {
        members::find(&mut *self.readers.acquire().await?, network, agent, now).await
    }

    async fn visible_record(
        &self,
        network: &NetworkId,
        whom: &Whom,
        asker: &AgentId,
        now: UnixTime,
    ) -> Result<Option<String>, StoreError> {
        let mut reader = self.readers.acquire().await?;
        members::find_visible(&mut reader, network, (whom, asker), now).await
    }

    async fn records_through(
        &self,
        network: &NetworkId,
        links: &[String],
    ) -> Result<Vec<RecordRow>, StoreError> {
        members::through(&mut *self.readers.acquire().await?, network, links).await
    }

    async fn put_request(&self, new: &NewRequest, now: UnixTime) -> Result<Kept, StoreError> {
        write!(self, async |tx| trust::put_request(tx, new, now).await)
    }

    async fn put_consent(&self, new: &NewConsent, now: UnixTime) -> Result<Kept, StoreError> {
        let mut tx = self.begin().await?;
        let kept = trust::put_consent(&mut tx, new, now).await?;
        if kept != Kept::Full {
            tx.commit().await?;
        }
        Ok(kept)
    }

    async fn consented(
        &self,
        network: &NetworkId,
        issuer: &AgentId,
        now: UnixTime,
    ) -> Result<Vec<AgentId>, StoreError> {
        trust::consented(&mut *self.readers.acquire().await?, network, issuer, now).await
    }

    async fn names_of(
        &self,
        network: &NetworkId,
        agent: &AgentId,
    ) -> Result<Vec<MemberName>, StoreError> {
        members::names_of(&mut *self.readers.acquire().await?, network, agent).await
    }

    async fn holder(
        &self,
        network: &NetworkId,
        name: &MemberName,
    ) -> Result<Option<AgentId>, StoreError> {
        members::holder(&mut *self.readers.acquire().await?, network, name).await
    }

    async fn put_token(&self, new: &NewToken) -> Result<Kept, StoreError> {
        write!(self, async |tx| authority::put_token(tx, new).await)
    }

    async fn tokens(
        &self,
        network: &NetworkId,
        after: u64,
        limit: u32,
    ) -> Result<Vec<TokenRow>, StoreError> {
        authority::tokens(&mut *self.readers.acquire().await?, network, after, limit).await
    }

    async fn add_revocation(&self, new: &NewRevocation, now: UnixTime) -> Result<Kept, StoreError> {
        write!(self, async |tx| authority::add_revocation(tx, new, now)
            .await)
    }

    async fn revocations(
        &self,
        network: &NetworkId,
    ) -> Result<Vec<(UnixTime, String)>, StoreError> {
        authority::revocations(&mut *self.readers.acquire().await?, network).await
    }

    async fn put_gateway(&self, new: &NewGateway) -> Result<(), StoreError> {
        write!(self, async |tx| authority::put_gateway(tx, new).await)
    }

    async fn is_gateway(&self, gateway: &Did) -> Result<bool, StoreError> {
        authority::is_gateway(&mut *self.readers.acquire().await?, gateway).await
    }

    async fn gateways(&self, now: UnixTime) -> Result<Vec<String>, StoreError> {
        authority::gateways(&mut *self.readers.acquire().await?, now).await
    }

    async fn member_changes(
        &self,
        network: &NetworkId,
        agent: &AgentId,
        after: u64,
        now: UnixTime,
    ) -> Result<Page, StoreError> {
        let mut tx = self.readers.begin().await?;
        changes::of_member(&mut tx, network, agent, (after, now)).await
    }

    async fn gateway_changes(&self, after: u64, now: UnixTime) -> Result<Page, StoreError> {
        let mut tx = self.readers.begin().await?;
        changes::of_gateways(&mut tx, after, now).await
    }

    async fn domain_changes(&self, after: u64, now: UnixTime) -> Result<Page, StoreError> {
        let mut tx = self.readers.begin().await?;
        changes::of_domain(&mut tx, after, now).await
    }

    async fn expire(&self, now: UnixTime) -> Result<Option<UnixTime>, StoreError> {
        write!(self, async |tx| members::expire(tx, now).await)
    }
}

/// Checks a statement's place in its sequence and takes it.
async fn take_sequence(
    tx: &mut SqliteConnection,
    network: &str,
    sequence: &Sequence,
) -> Result<Kept, StoreError> {
    let (issuer, subject) = (sequence.issuer.to_string(), sequence.subject.to_string());
    let seen = sqlx::query(
        "SELECT seq, hash FROM seqs WHERE network = ? AND kind = ? AND issuer = ? AND subject = ?",
    )
    .bind(network)
    .bind(sequence.kind)
    .bind(&issuer)
    .bind(&subject)
    .fetch_optional(&mut *tx)
    .await?;
    if let Some(row) = seen {
        let seen = number(&row, "seq")?;
        if seen == sequence.seq && text(&row, "hash")? == sequence.hash {
            return Ok(Kept::Same);
        }
        if seen >= sequence.seq {
            return Ok(Kept::Stale { seen });
        }
    }
    sqlx::query(
        "INSERT INTO seqs (network, kind, issuer, subject, seq, hash, keep)
         VALUES (?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (network, kind, issuer, subject) DO UPDATE
         SET seq = excluded.seq, hash = excluded.hash, keep = max(keep, excluded.keep)",
    )
    .bind(network)
    .bind(sequence.kind)
    .bind(issuer)
    .bind(subject)
    .bind(signed(sequence.seq))
    .bind(&sequence.hash)
    .bind(millis(sequence.keep))
    .execute(tx)
    .await?;
    Ok(Kept::New)
}

/// Raises a network's version and returns it.
async fn next_version(tx: &mut SqliteConnection, network: &str) -> Result<i64, StoreError> {
    let raised = sqlx::query_scalar::<_, i64>(
        "UPDATE networks SET ver = ver + 1 WHERE network = ? RETURNING ver",
    );
    Ok(raised.bind(network).fetch_one(tx).await?)
}

/// Raises the domain's version and returns it.
async fn next_domain_version(tx: &mut SqliteConnection) -> Result<i64, StoreError> {
    let raised = sqlx::query_scalar::<_, i64>("UPDATE meta SET ver = ver + 1 RETURNING ver");
    Ok(raised.fetch_one(tx).await?)
}

fn text(row: &SqliteRow, column: &str) -> Result<String, StoreError> {
    Ok(row.try_get::<String, _>(column)?)
}

fn parsed<T: std::str::FromStr>(row: &SqliteRow, column: &str) -> Result<T, StoreError> {
    let text = text(row, column)?;
    let nonsense = |_| StoreError::Nonsense(format!("{column} is `{text}`"));
    text.parse().map_err(nonsense)
}

fn number(row: &SqliteRow, column: &str) -> Result<u64, StoreError> {
    let number = row.try_get::<i64, _>(column)?;
    u64::try_from(number).map_err(|_| StoreError::Nonsense(format!("{column} is {number}")))
}

/// Returns a number as SQL holds it; what does not fit is as good as for ever.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn millis(time: UnixTime) -> i64 {
    signed(time.as_millis())
}
