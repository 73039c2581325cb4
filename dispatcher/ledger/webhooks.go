package ledger

import (
	"errors"
	"time"

	"github.com/paddockvm/paddock/jobs"
)

// This file is what the ledger keeps of webhooks. A state change leaves a Hook in its own transaction; of a Hook come Deliveries, in one
// transaction that takes the Hook away; a Delivery is tried until it has been delivered or has failed for good, and then kept for a while.

// ErrNoWebhook is returned for an endpoint or a delivery that is not there.
var ErrNoWebhook = errors.New("no such endpoint or delivery")

// Endpoint is a tenant's webhook endpoint with its secrets, which go into no log and no list.
type Endpoint struct {
	ID          string    `json:"-"`
	Tenant      string    `json:"-"`
	Enabled     bool      `json:"-"`
	URL         string    `json:"url"`
	Events      []string  `json:"events"`
	Format      string    `json:"format"`
	Description string    `json:"description,omitempty"`
	CreatedAt   time.Time `json:"created_at"`
	// DisabledReason and DisabledAt tell of one that is not enabled.
	DisabledReason string    `json:"disabled_reason,omitempty"`
	DisabledAt     time.Time `json:"disabled_at,omitzero"`
	// FailingSince is when the deliveries began to fail of which none has succeeded since, FailedAt when the last one did.
	FailingSince time.Time `json:"failing_since,omitzero"`
	FailedAt     time.Time `json:"failed_at,omitzero"`
	// Secrets sign deliveries, the newest first.
	Secrets []Secret `json:"secrets"`
}

// Secret signs deliveries until ExpiresAt; zero is for ever.
type Secret struct {
	Value     string    `json:"value"`
	CreatedAt time.Time `json:"created_at"`
	ExpiresAt time.Time `json:"expires_at,omitzero"`
}

// Hook is a state change that somebody may be told of.
type Hook struct {
	ID     int64
	Tenant string
	Type   string // jobs.HookRunning and so on
	// Event is the jobs.Event, or the jobs.Batch, as it is after the change.
	Event []byte
	// Labels, Batch and Callbacks are the job's; none for a batch's hook.
	Labels    map[string]string
	Batch     string
	Callbacks []jobs.Callback
}

// Spread is what has become of a Hook.
type Spread struct {
	Hook       int64
	Deliveries []Delivery
}

// Delivery is one event for one endpoint or callback, Body included.
type Delivery struct {
	jobs.Delivery
	Tenant string
	// Format is the body's.
	Format string
	// Target is what deliveries wait for together: an endpoint's id, or a tenant's callbacks to one server.
	Target string
	// Step is how many tries of the schedule have been.
	Step int
}

// DeliveryTarget is what has deliveries to be made.
type DeliveryTarget struct {
	Target, Tenant string
	NextAt         time.Time // of the earliest
}

// DeliveryTry is what has become of a try at a delivery.
type DeliveryTry struct {
	Tenant, ID string
	Try        jobs.Try // Attempt is set by the ledger
	// State, NextAt and Step are the delivery's from now on.
	State  jobs.DeliveryState
	NextAt time.Time
	Step   int
	// Endpoint, where it is not empty, is changed by Change in the same transaction, where it is still there; Change says whether it did
	// anything. It may be called more than once, each time with what the endpoint was before.
	Endpoint string
	Change   func(*Endpoint) bool
}
