//! What is shown, as it comes: two tasks that ask the daemon again and again,
//! and a thread that reads the terminal.
//!
//! Invariants: an answer that does not come counts as none after some seconds;
//! all goes through one bounded channel, and whoever fills it waits; each ends
//! when nobody listens any more.

use std::io;
use std::time::Duration;

use ratatui::crossterm::event::{self, Event as Input};
use tokio::sync::mpsc::Sender;
use tokio::time::MissedTickBehavior;
use warren_node::api::{Client, ClientError};
use warren_node::fault::Fault;
use warren_types::api::{EventRecord, OnionReport, Status};

/// How long an answer may take: thousands of peers on a busy machine.
const PATIENCE: Duration = Duration::from_secs(5);
/// How soon to listen again where the stream of events ended.
const AGAIN: Duration = Duration::from_millis(500);

/// What happened outside.
#[derive(Debug)]
pub(super) enum News {
    Answer(Box<(Status, OnionReport)>),
    NoAnswer(String),
    Happened(EventRecord),
    Input(io::Result<Input>),
}

async fn one(client: &Client) -> Result<(Status, OnionReport), ClientError> {
    Ok((client.status().await?, client.onion().await?))
}

/// Asks how things are, once per `interval`.
pub(super) async fn ask(client: Client, interval: Duration, news: Sender<News>) {
    let mut tick = tokio::time::interval(interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let told = match tokio::time::timeout(PATIENCE, one(&client)).await {
            Ok(Ok(answer)) => News::Answer(Box::new(answer)),
            Ok(Err(error)) => News::NoAnswer(Fault::from(error).to_string()),
            Err(_) => News::NoAnswer(format!("no answer within {} s", PATIENCE.as_secs())),
        };
        if news.send(told).await.is_err() {
            return;
        }
    }
}

/// Listens to what happens; the other task tells where that is not possible.
pub(super) async fn listen(client: Client, news: Sender<News>) {
    while !news.is_closed() {
        if let Ok(mut stream) = client.events(true).await {
            while let Ok(Some(record)) = stream.next().await {
                if news.send(News::Happened(record)).await.is_err() {
                    return;
                }
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Reads the terminal until it or the program ends.
pub(super) fn read_keys(news: &Sender<News>) {
    loop {
        let input = event::read();
        let last = input.is_err();
        if news.blocking_send(News::Input(input)).is_err() || last {
            return;
        }
    }
}
