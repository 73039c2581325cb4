package objects

import (
	"context"
	"fmt"
	"time"

	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/jobs"
)

// Uploads take room on the disk as they come: what a tenant has said that it will send takes none from the others. So that no upload that was
// begun has to fail for want of room, there is an order among them:
//
//   - Of three quarters of the room a tenant may have as much as is left of them for others. However many fill it, there is some left for one
//     more, and small uploads are not held up by large ones.
//   - The last quarter, which is as much as an object may have, is for the oldest upload that is not whole. So there always is one that comes
//     to its end, and then the next.
//   - Who is refused keeps what is there, and comes again. Who could go on and does not is forgotten: after a minute where others are refused,
//     else after ten.
//
// A tenant's own uploads may not be more than it could have at once when they are whole; they are in nobody's way but each other's.

const (
	// maxUploads is how many uploads of a tenant may be under way; a client has one for each file.
	maxUploads = 16
	// maxGathered bounds what the uploads of a tenant may have when they are whole, and maxGatheredAll what those of all take of the disk.
	maxGathered    = jobs.MaxObjectBytes
	maxGatheredAll = 4 * jobs.MaxObjectBytes
	// abandonedAfter is how long an upload is kept that does not come on, and pressedAfter where others are refused for want of room.
	abandonedAfter = 10 * time.Minute
	pressedAfter   = time.Minute
	// comesOn is how much has to come so that an upload comes on: who holds a place should use it.
	comesOn = 1 << 20
	// uploadRetryMS is when to come again where there are too many.
	uploadRetryMS = 5_000
)

// held is what a tenant's uploads have.
type held struct {
	uploads  int
	declared int64 // when they are whole
	shared   int64 // that have come, and are in what all share
}

// admit says whether a tenant may begin an upload; u.mu is held.
func (u *Uploads) admit(tenant string, size int64) error {
	h := u.tenants[tenant]
	switch {
	case h == nil:
	case h.uploads >= maxUploads:
		return &jobs.Error{Code: jobs.CodeQuota, Message: fmt.Sprintf("%d uploads of the tenant are under way", h.uploads), RetryAfterMS: uploadRetryMS}
	case h.declared+size > maxGathered:
		return &jobs.Error{Code: jobs.CodeQuota, Message: "the tenant's uploads that are under way leave no room for it", RetryAfterMS: uploadRetryMS}
	}
	return nil
}

// take takes room for n bytes more of an upload; u.mu is held.
func (u *Uploads) take(ctx context.Context, k key, up *upload, n int64) error {
	shared := u.fits(k.tenant, n)
	if !shared && !u.next(up, n) {
		u.forget(ctx, time.Now().Add(-pressedAfter), up)
		if shared = u.fits(k.tenant, n); !shared && !u.next(up, n) {
			up.touched = time.Now() // it is not its fault
			return &jobs.Error{Code: jobs.CodeUnavailable, Message: "too much is being uploaded; what was taken is kept", RetryAfterMS: uploadRetryMS}
		}
	}
	if h := u.tenants[k.tenant]; shared {
		u.shared, h.shared, up.shared = u.shared+n, h.shared+n, up.shared+n
	} else {
		u.last += n
	}
	up.came += n
	if up.came-up.marked >= comesOn || up.came == up.size {
		up.marked, up.touched = up.came, time.Now()
	}
	return nil
}

// fits tells whether a tenant may have n bytes more of what all share.
func (u *Uploads) fits(tenant string, n int64) bool {
	left := u.room - u.room/4 - u.shared - n
	return u.tenants[tenant].shared+n <= left
}

// next tells whether an upload may have n bytes of what is for one after the other.
func (u *Uploads) next(up *upload, n int64) bool { return u.last+n <= u.room/4 && u.oldest() == up }

// oldest gives the upload that was begun first of those that are not whole.
func (u *Uploads) oldest() (first *upload) {
	for _, up := range u.uploads {
		if up.came < up.size && (first == nil || up.begun < first.begun) {
			first = up
		}
	}
	return first
}

// forget forgets uploads that have not come on since a time, but for one; u.mu is held.
func (u *Uploads) forget(ctx context.Context, before time.Time, but *upload) {
	for k, up := range u.uploads {
		if up != but && up.idle(before) {
			u.drop(k, up)
			zerolog.Ctx(ctx).Info().Str("tenant", k.tenant).Int64("size", up.size).Msg("objects: an upload was abandoned")
		}
	}
}

// drop forgets an upload; u.mu is held.
func (u *Uploads) drop(k key, up *upload) {
	if u.uploads[k] != up {
		return
	}
	delete(u.uploads, k)
	h := u.tenants[k.tenant]
	h.uploads, h.declared, h.shared = h.uploads-1, h.declared-up.size, h.shared-up.shared
	if h.uploads == 0 {
		delete(u.tenants, k.tenant)
	}
	u.shared -= up.shared
	u.last -= up.came - up.shared
	up.close()
}
