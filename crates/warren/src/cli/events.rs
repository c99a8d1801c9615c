//! `warren events`.

use warren_node::fault::Fault;

use super::{State, out, story};

/// Prints what happened; with `follow`, until the daemon or the reader ends.
pub(super) async fn show(state: &State, follow: bool, json: bool) -> Result<(), Fault> {
    let mut stream = state.client().events(follow).await?;
    while let Some(record) = stream.next().await? {
        let line = if json {
            serde_json::to_string(&record).map_err(|e| Fault::internal(&e))?
        } else {
            story::dated(record.at, &record.event)
        };
        out(&format!("{line}\n"))?;
    }
    Ok(())
}
