// Package access says who may do what on NATS: roles, the subjects that each is given, and the file of credentials that names who has which.
// It knows no server; package bus asks it, for the embedded one and for one of somebody else's. It imports jobs.
package access

import (
	"errors"
	"fmt"
	"time"

	"github.com/paddockvm/paddock/jobs"
)

// Role is what somebody on NATS is.
type Role string

// The roles.
const (
	// Tenant submits jobs, and sees and ends its own. Its name is the tenant.
	Tenant Role = "tenant"
	// Worker leases jobs of all tenants and reports on them. Its name is the worker's, unique in its fleet.
	Worker Role = "worker"
	// Operator may do everything that Paddock does, as dispatchers must. The name is for people.
	Operator Role = "operator"
	// Monitor sees records, events and streams of all tenants, and changes nothing. The name is for people.
	Monitor Role = "monitor"
)

// Identity is somebody.
type Identity struct {
	Role Role   `yaml:"role"`
	Name string `yaml:"name"`
}

// String is for people: "tenant acme".
func (i Identity) String() string { return string(i.Role) + " " + i.Name }

// Validate finds what is no identity.
func (i Identity) Validate() error {
	switch i.Role {
	case Tenant, Worker, Operator, Monitor:
	default:
		return fmt.Errorf("role %q: want %s, %s, %s or %s", i.Role, Tenant, Worker, Operator, Monitor)
	}
	if jobs.ValidTenant(i.Name) != nil { // one token, like a tenant
		return fmt.Errorf("name %.80q of a %s: want 1 to 63 letters, digits, _ or -", i.Name, i.Role)
	}
	return nil
}

// Inbox is the prefix of the identity's reply subjects, which nobody else may listen on. Those of tenants begin with _INBOX_, and of others
// do not, so that a tenant of any name has none but its own.
func (i Identity) Inbox() string {
	switch i.Role {
	case Tenant:
		return "_INBOX_" + i.Name
	case Worker:
		return workerInboxes + i.Name
	case Monitor:
		return monitorInboxes + i.Name
	}
	return operatorInboxes
}

const (
	operatorInboxes = "_INBOX"
	workerInboxes   = "_INBOX-worker."
	monitorInboxes  = "_INBOX-monitor."
)

// ErrDenied is for those who are not let in. Why is for the log, and no business of theirs.
var ErrDenied = errors.New("denied")

// longestAnswer is how long after a request a worker may answer it: a chunk of standard input is answered when the program has read it.
const longestAnswer = 25 * time.Hour
