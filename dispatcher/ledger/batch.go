package ledger

import (
	"context"
	"errors"
	"time"

	"github.com/paddockvm/paddock/jobs"
)

// Batches are the operations on jobs that came in together.
type Batches interface {
	// AdmitBatch writes a batch and those of its jobs that are new: many of them in several transactions, between which others have their turn,
	// but until all is written nothing of it is there for anybody, besides that its ids and keys are taken. Where the batch's id or key is taken
	// it writes nothing. Nothing is left of an atomic batch where the id or the key of one of its jobs belongs to a job with another body: the
	// error is ErrConflict then, and Each tells of which. A batch of which no job was new ends at once. After another error it is there, or
	// DropIncoming has something to remove.
	AdmitBatch(ctx context.Context, b BatchAdmission) (Admitted, error)
	// TakenBatch gives the batch of its tenant that has the id or the key already, and the jobs that have those of the new one's, as AdmitBatch
	// would: both wait for one that is being written. It changes nothing.
	TakenBatch(ctx context.Context, b BatchAdmission) (Admitted, error)
	// DropIncoming removes what was written of batches whose AdmitBatch has ended, with its process or with an error, before all was.
	DropIncoming(ctx context.Context) error
	// Batch gives a batch. ErrNotFound if there is none.
	Batch(ctx context.Context, tenant, id string) (jobs.Batch, error)
	// Batches gives a tenant's batches, newest first, those whose ids are less than before; empty is all.
	Batches(ctx context.Context, tenant, before string, limit int) ([]jobs.Batch, error)
	// CancelBatch notes of all jobs of a batch that have not ended that they are to be canceled, and gives their ids.
	CancelBatch(ctx context.Context, tenant, id string) (open []string, err error)
}

// ErrConflict is returned where a job of an atomic batch cannot be taken for what another has.
var ErrConflict = errors.New("the id or the key belongs to a job with another body")

// ErrArriving is returned where a batch with the id or the key was written in part: DropIncoming removes that.
var ErrArriving = errors.New("a batch with the id or the key is on its way into the ledger, and may come to nothing")

// BatchAdmission is a new batch.
type BatchAdmission struct {
	ID, Tenant string
	AcceptedAt time.Time
	Hash       string // of its body
	Key        string // idempotency key, remembered until KeyUntil; empty for none. It is apart from jobs' keys
	KeyUntil   time.Time
	Atomic     bool
	// Jobs are of the tenant; which batch they are of they need not say.
	Jobs []Admission
}

// Admitted is what became of a BatchAdmission.
type Admitted struct {
	// Batch is the new one, or the one that has its id or key already; of another tenant's nothing is given. Its Total counts the jobs
	// that were new.
	Batch jobs.Batch
	// Taken says that there was one, with the hash Hash.
	Taken bool
	Hash  string
	// Each is for each job that which has its id or key; nil where it is new, or, with Taken, where there is none.
	Each []*Taken
}

// Outcome is how far a job is that another depends on.
type Outcome struct {
	Open bool // has not ended
	OK   bool // ended with the exit code 0
}
