package jobs

import (
	"encoding/base64"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
)

// What is asked of webhooks: the last token of their subjects, and the request that goes with it. All are answered by a WebhookReply.
const (
	WebhookAdd        = "add"        // EndpointRequest: Endpoint and its Secret
	WebhookGet        = "get"        // EndpointID: Endpoint
	WebhookList       = "list"       // nothing: Endpoints
	WebhookRemove     = "remove"     // EndpointID: Endpoint as it was; what it was still to be told fails
	WebhookEnable     = "enable"     // EndpointID: Endpoint
	WebhookDisable    = "disable"    // EndpointID: Endpoint; likewise
	WebhookRotate     = "rotate"     // RotateRequest: a new Secret
	WebhookSecret     = "secret"     // nothing: the Secret of the tenant's callbacks, which is made where there is none
	WebhookTest       = "test"       // EndpointID: Delivery
	WebhookDeliveries = "deliveries" // DeliveriesRequest: Deliveries, Next
	WebhookDelivery   = "delivery"   // DeliveryID: Delivery with its tries
	WebhookReplay     = "replay"     // RedeliverRequest: Count
)

// EndpointRequest makes an endpoint.
type EndpointRequest struct {
	// URL is https (or http, where the operator allows it), without credentials and fragment.
	URL string `json:"url"`
	// Events are what it is to be told of; empty means "job.ended" and "batch.ended".
	Events []string `json:"events,omitempty"`
	// Format is "standard" (the default) or "cloudevents".
	Format string `json:"format,omitempty"`
	// Description is for people; at most 200 bytes.
	Description string `json:"description,omitempty"`
	// Secret is for those who bring one from elsewhere: "whsec_" and 24 to 64 bytes in base64. Empty: one is made.
	Secret string `json:"secret,omitempty"`
}

// EndpointID names an endpoint.
type EndpointID struct {
	// ID is the endpoint's.
	ID string `json:"id"`
}

// RotateRequest makes a new secret. The ones before it sign too until the grace is over.
type RotateRequest struct {
	// ID is the endpoint's, or "callbacks": the secret with which the tenant's callbacks are signed.
	ID string `json:"id"`
	// GraceMS is the grace, at most 30 days; 24 hours where it is left out. 0 is for a secret that has become known.
	GraceMS *int64 `json:"grace_ms,omitempty"`
	// Secret is for those who bring one from elsewhere.
	Secret string `json:"secret,omitempty"`
}

// CallbacksID stands for an endpoint's id where the tenant's callbacks are meant.
const CallbacksID = "callbacks"

// DeliveriesRequest asks for deliveries, the newest first.
type DeliveriesRequest struct {
	// Endpoint is an endpoint's id, or "callbacks"; empty means all.
	Endpoint string `json:"endpoint,omitempty"`
	// Job is what they tell of; empty means anything.
	Job string `json:"job,omitempty"`
	// States to give; empty means all.
	States []DeliveryState `json:"states,omitempty"`
	// Limit is at most 1000; 0 means 50.
	Limit int `json:"limit,omitempty"`
	// Before is the Next of the reply before this.
	Before string `json:"before,omitempty"`
}

// DeliveryID names a delivery.
type DeliveryID struct {
	// ID is the delivery's.
	ID string `json:"id"`
}

// RedeliverRequest has deliveries tried again, from the beginning of the schedule, under their own ids: one by its id, whatever became of
// it, or all that failed and happened at Since or later.
type RedeliverRequest struct {
	// ID is the delivery's; or Since is given.
	ID string `json:"id,omitempty"`
	// Endpoint is an endpoint's id, or "callbacks", with Since; empty means all.
	Endpoint string `json:"endpoint,omitempty"`
	// Since has all tried again that failed and were created at that time or later.
	Since time.Time `json:"since,omitzero"`
}

// WebhookReply answers all that is asked of webhooks: with what the request's constant says, or Error.
type WebhookReply struct {
	// Endpoint is the one that is asked about.
	Endpoint *Endpoint `json:"endpoint,omitempty"`
	// Endpoints are all of the tenant's.
	Endpoints []Endpoint `json:"endpoints,omitzero"`
	// Secret is what deliveries are signed with, "whsec_" and base64.
	Secret string `json:"secret,omitempty"`
	// Delivery is the one that is asked about, or that was made.
	Delivery *Delivery `json:"delivery,omitempty"`
	// Deliveries are a page of them.
	Deliveries []Delivery `json:"deliveries,omitzero"`
	// Next is where the next page of deliveries begins; empty on the last.
	Next string `json:"next,omitempty"`
	// Count is how many deliveries are tried again.
	Count int `json:"count,omitempty"`
	// Warnings name unknown fields of the request and the nearest known ones.
	Warnings []string `json:"warnings,omitempty"`
	// Error is why it was refused.
	Error *Error `json:"error,omitempty"`
}

var (
	_ request = (*EndpointRequest)(nil)
	_ request = (*EndpointID)(nil)
	_ request = (*RotateRequest)(nil)
	_ request = (*DeliveriesRequest)(nil)
	_ request = (*DeliveryID)(nil)
	_ request = (*RedeliverRequest)(nil)
)

func (r *EndpointID) check(c *checker) { c.name("id", r.ID) } // an id that is none is nobody's
func (r *DeliveryID) check(c *checker) { c.name("id", r.ID) }

func (r *EndpointRequest) check(c *checker) {
	c.hookURL("url", r.URL)
	for i, e := range r.Events {
		if c.full() {
			break
		}
		at := fmt.Sprintf("events[%d]", i)
		if !slices.Contains(endpointEvents, e) || slices.Contains(r.Events[:i], e) {
			c.fault(at, "is %.80q, must be one of %s, and there once", e, strings.Join(endpointEvents, ", "))
		}
	}
	c.oneOf("format", r.Format, FormatStandard, FormatCloudEvents)
	c.text("description", r.Description, 200)
	c.hookSecret(r.Secret)
}

var endpointEvents = []string{HookRunning, HookRequeued, HookEnded, HookBatchEnded}

// hookURL checks what a webhook may be sent to, as far as the text tells.
func (c *checker) hookURL(at, text string) {
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" || u.Scheme != "https" && u.Scheme != "http" || u.User != nil || u.Fragment != "" || len(text) > 2048 {
		c.fault(at, "must be an http or https URL without credentials and fragment, at most 2048 bytes")
	}
}

// SecretPrefix begins every signing secret; base64 follows.
const SecretPrefix = "whsec_"

// hookSecret checks a secret that a client brings, if it does. What it is must not be repeated.
func (c *checker) hookSecret(secret string) {
	if secret == "" {
		return
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, SecretPrefix))
	if err != nil || !strings.HasPrefix(secret, SecretPrefix) || len(key) < 24 || len(key) > 64 {
		c.fault("secret", `must be "whsec_" and 24 to 64 bytes in base64`)
	}
}

func (r *RotateRequest) check(c *checker) {
	c.name("id", r.ID)
	if r.GraceMS != nil {
		c.within("grace_ms", *r.GraceMS, int64(30*24*time.Hour/time.Millisecond))
	}
	c.hookSecret(r.Secret)
}

func (r *DeliveriesRequest) check(c *checker) {
	c.name("endpoint", r.Endpoint)
	c.name("job", r.Job)
	for i, s := range r.States {
		if c.full() {
			break
		}
		if s != DeliveryPending && s != DeliveryDelivered && s != DeliveryFailed {
			c.fault(fmt.Sprintf("states[%d]", i), "is %.80q, must be one of %s, %s, %s", s, DeliveryPending, DeliveryDelivered, DeliveryFailed)
		}
	}
	c.within("limit", int64(r.Limit), 1000)
	if r.Before != "" {
		if _, err := ParseID(r.Before); err != nil {
			c.fault("before", "%.80q must be the next of another reply", r.Before)
		}
	}
}

func (r *RedeliverRequest) check(c *checker) {
	c.name("id", r.ID)
	c.name("endpoint", r.Endpoint)
	if (r.ID == "") == r.Since.IsZero() {
		c.fault("id", "or since is required, not both")
	}
	if r.ID != "" && r.Endpoint != "" {
		c.fault("endpoint", "belongs to since")
	}
}
