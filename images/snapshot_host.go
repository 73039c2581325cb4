package images

import (
	"context"
	"errors"
	"fmt"

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
	for _, s := range list {
		if s.fits(h.Driver.Name(), h.Caps) != nil {
			continue
		}
		shape := s.shape()
		offered = append(offered, jobs.OfferedImage{
			Name: s.Image, Digest: s.ID, Resources: shape.Resources, NIC: shape.NIC, NoRoot: s.NoRoot, Snapshot: true,
		})
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
