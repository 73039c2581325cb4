package images

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/vmm"
)

// offeredSnapshots lists the snapshots that can be restored here.
func (h *Host) offeredSnapshots() (offered []jobs.OfferedImage) {
	if h.Snapshots == nil {
		return nil
	}
	list, _ := h.Snapshots.List() // one that cannot be read is not offered; `snapshot ls` says why
	if len(list) == 0 {
		return nil
	}
	now := hereWith(h.Driver.Name(), h.Caps)
	for _, s := range list {
		if s.fits(now) != nil {
			continue
		}
		shape := s.shape()
		offered = append(offered, jobs.OfferedImage{
			Name: s.Image, Digest: s.ID, Resources: shape.Resources, NIC: shape.NIC, NoRoot: s.NoRoot, Snapshot: true,
		})
	}
	return offered
}

// maxOffered is how many snapshots a host offers. All of them are in each heartbeat of its worker, which is one message, of a mebibyte at most,
// and clients make as many as they like: with the longest names these take half of one.
const maxOffered = 2000

// inTurns gives at most so many of a list of snapshots, the oldest of which are first. Tenants take turns, each with its newest first: one that
// has many keeps nobody else's out.
func inTurns(list []jobs.OfferedImage, most int) []jobs.OfferedImage {
	if len(list) <= most {
		return list
	}
	turns, had := make([]int, len(list)), map[string]int{}
	order := make([]int, 0, len(list))
	for i, o := range slices.Backward(list) {
		tenant := jobs.SnapshotTenant(o.Name)
		turns[i] = had[tenant]
		had[tenant]++
		order = append(order, i)
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(turns[a], turns[b]) })
	order = order[:most]
	slices.Sort(order)
	offered := make([]jobs.OfferedImage, 0, most)
	for _, i := range order {
		offered = append(offered, list[i])
	}
	return offered
}

// snapshotTemplate gives the template of a snapshot, which is in use from then on until Release.
func (h *Host) snapshotTemplate(ctx context.Context, image string, shape jobs.Shape) (vmm.Template, string, error) {
	if h.Snapshots == nil {
		return vmm.Template{}, "", fmt.Errorf("%w: %s", ErrNoSnapshot, image)
	}
	s, err := h.Snapshots.named(image)
	if err != nil {
		return vmm.Template{}, "", err
	}
	if err := s.fixed(shape); err != nil {
		return vmm.Template{}, "", fmt.Errorf("%s: %w", image, err)
	}
	t, release, err := h.Snapshots.Open(ctx, s.ID, h.Driver.Name(), h.Caps)
	if err != nil {
		return vmm.Template{}, "", err
	}
	h.hold(t.Dir, release)
	return t, s.ID, nil
}

// hold keeps a snapshot in use until its template is released as often as it was given.
func (h *Host) hold(dir string, release func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.held == nil {
		h.held = map[string][]func(){}
	}
	h.held[dir] = append(h.held[dir], release)
}

// Release says that whoever was given a template needs it no more, nor any machine that was cloned from it for them: once for each time
// that Template gave it.
func (h *Host) Release(t vmm.Template) {
	h.mu.Lock()
	defer h.mu.Unlock()
	holds := h.held[t.Dir]
	if len(holds) == 0 { // an image's
		return
	}
	holds[0]()
	if h.held[t.Dir] = holds[1:]; len(holds) == 1 {
		delete(h.held, t.Dir)
	}
}

// Snapshot keeps the state of a running machine that was cloned from t. Errors that clients can do something about are *jobs.Error.
func (h *Host) Snapshot(ctx context.Context, m vmm.Machine, t vmm.Template, o jobs.SnapshotOrigin, r jobs.SnapshotRequest) (jobs.Snapshot, error) {
	if h.Snapshots == nil {
		return jobs.Snapshot{}, &jobs.Error{Code: jobs.CodeUnsupported, Message: "this host keeps no snapshots"}
	}
	s, err := h.Snapshots.Create(ctx, m, t, h.Caps, o, r)
	for _, known := range []struct {
		is   error
		code jobs.Code
	}{
		{vmm.ErrUnsupported, jobs.CodeUnsupported}, {ErrNameTaken, jobs.CodeConflict}, {errOtherLine, jobs.CodeInvalid}, {ErrNoSnapshot, jobs.CodeNotFound},
	} {
		if errors.Is(err, known.is) {
			return s.Snapshot, &jobs.Error{Code: known.code, Message: err.Error()}
		}
	}
	if err != nil {
		return s.Snapshot, err
	}
	zerolog.Ctx(ctx).Info().Str("machine", m.ID()).Str("snapshot", s.ID).Float64("paused_ms", s.PausedMS).Msg("snapshot made")
	return s.Snapshot, nil
}
