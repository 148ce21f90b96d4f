//! The entries and the supervisor that runs them, together: what the API and the signals act on.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::catalog::{Catalog, CatalogError};
use crate::files::{self, Entries, Entry, Problems};
use crate::supervise::{InstanceStatus, ReloadError, Reloaded, Supervisor};
use crate::work::link::Daemons;

/// Stands for the file in messages about entries that came by the API.
const REQUEST: &str = "request";

/// One supervisor with its entries.
#[derive(Debug, Clone)]
pub struct Fleet {
    supervisor: Supervisor,
    catalog: Arc<Mutex<Catalog>>,
    /// Held from the change of the entries until the supervisor has them: two changes do not overtake each
    /// other.
    changing: Arc<tokio::sync::Mutex<()>>,
    daemons: Daemons,
}

/// Why a change did not come about.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// The entries.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The supervisor.
    #[error(transparent)]
    Supervisor(#[from] ReloadError),
}

/// Entries as they come by the API.
#[derive(Debug)]
pub enum Given {
    /// The text of an instance file.
    Yaml(String),
    /// What such a text would say.
    Json(serde_json::Value),
}

impl Fleet {
    /// The supervisor runs what the catalog has.
    #[must_use]
    pub fn new(supervisor: Supervisor, catalog: Catalog) -> Self {
        let catalog = Arc::new(Mutex::new(catalog));
        Self { supervisor, catalog, changing: Arc::default(), daemons: Daemons::none() }
    }

    /// The same, and these daemons are told of its work.
    #[must_use]
    pub fn with_daemons(self, daemons: Daemons) -> Self {
        Self { daemons, ..self }
    }

    /// The daemons that are told of its work.
    #[must_use]
    pub fn daemons(&self) -> &Daemons {
        &self.daemons
    }

    /// The supervisor.
    #[must_use]
    pub fn supervisor(&self) -> &Supervisor {
        &self.supervisor
    }

    fn catalog(&self) -> MutexGuard<'_, Catalog> {
        self.catalog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The instances as they are, in the order of their entries.
    #[must_use]
    pub fn statuses(&self) -> Vec<InstanceStatus> {
        self.supervisor.statuses().borrow().clone()
    }

    /// The instance of this name as it is.
    #[must_use]
    pub fn status(&self, name: &str) -> Option<InstanceStatus> {
        self.supervisor.statuses().borrow().iter().find(|status| status.name == name).cloned()
    }

    /// The entry of this name, and whether it was applied.
    #[must_use]
    pub fn entry(&self, name: &str) -> Option<(Entry, bool)> {
        let catalog = self.catalog();
        let entry = catalog.entries().find(name)?.clone();
        Some((entry, catalog.is_applied(name)))
    }

    /// All entries.
    #[must_use]
    pub fn entries(&self) -> Entries {
        self.catalog().entries().clone()
    }

    /// Reads all files again. Where anything is wrong, everything stays as it was.
    ///
    /// # Errors
    /// [`FleetError`]
    pub async fn reload(&self) -> Result<Reloaded, FleetError> {
        self.change(|catalog| Ok(catalog.reload()?)).await
    }

    /// Adds entries, in the place of those with the same names.
    ///
    /// # Errors
    /// [`FleetError`]; nothing is changed then.
    pub async fn apply(&self, given: Given) -> Result<Reloaded, FleetError> {
        self.change(|catalog| {
            let around = catalog.surroundings();
            let name = Path::new(REQUEST);
            let entries: Result<Entries, Problems> = match given {
                Given::Yaml(text) => files::parse(name, &text, around),
                Given::Json(json) => files::from_json(name, &json, around),
            };
            catalog.apply(entries?)
        })
        .await
    }

    /// Takes back what was applied under this name.
    ///
    /// # Errors
    /// [`FleetError`]; nothing is changed then.
    pub async fn remove(&self, name: &str) -> Result<Reloaded, FleetError> {
        let name = name.to_owned();
        self.change(move |catalog| catalog.remove(&name)).await
    }

    async fn change(
        &self,
        change: impl FnOnce(&mut Catalog) -> Result<(), CatalogError> + Send + 'static,
    ) -> Result<Reloaded, FleetError> {
        let fleet = self.clone();
        // In a task of its own: a client that hangs up does not leave files changed that the supervisor has
        // not seen.
        let done = tokio::spawn(async move {
            let _changing = fleet.changing.lock().await;
            // Files may lie on a slow disk: meanwhile the entries as they were are shown.
            let mut catalog = fleet.catalog().clone();
            let changed = tokio::task::spawn_blocking(move || {
                change(&mut catalog)?;
                Ok::<_, CatalogError>(catalog)
            });
            let catalog = changed.await.map_err(|_| ReloadError::Ending)??;
            let entries = catalog.entries().clone();
            *fleet.catalog() = catalog;
            for note in &entries.notes {
                tracing::warn!("{note}");
            }
            Ok(fleet.supervisor.reload(entries.instances()).await?)
        });
        done.await.unwrap_or(Err(FleetError::Supervisor(ReloadError::Ending)))
    }
}
