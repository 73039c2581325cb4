package worker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"crypto/sha256"
	"encoding/hex"

	"github.com/paddockvm/paddock/guestagent/client"
	"github.com/paddockvm/paddock/guestagent/wire"
	"github.com/paddockvm/paddock/jobs"
)

const (
	// copyWithin bounds all copying in one direction: a guest that stalls is given up.
	copyWithin = 2 * time.Minute
	// maxArtifactFiles is how many files one pattern may match.
	maxArtifactFiles = 1024
	// defaultArtifactBytes is an artifact's size limit where it names none.
	defaultArtifactBytes = 16 << 20
)

// copyIn puts the job's files into the machine. It gives false where a file cannot be had or put: the job's fault, in the result.
func (a *attempt) copyIn(ctx context.Context, m *machine) (bool, error) {
	start := time.Now()
	defer func() { a.result.Phases.CopyInMS = ms(time.Since(start)) }()
	ctx, cancel := context.WithTimeout(ctx, copyWithin)
	defer cancel()
	for _, f := range a.spec.Files {
		if err := a.put(ctx, m, f); err != nil {
			return false, a.fileFailed(ctx, "put "+f.Path, err)
		}
	}
	return true, nil
}

func (a *attempt) put(ctx context.Context, m *machine, f jobs.File) error {
	mode, err := strconv.ParseUint(f.Mode, 8, 32)
	if err != nil {
		mode = 0o644
	}
	req := wire.Put{Path: f.Path, Mode: uint32(mode), User: "sandbox"}
	if f.Object == nil {
		data := f.Base64
		if f.Text != "" {
			data = []byte(f.Text)
		}
		req.Size = int64(len(data))
		return m.agent.Put(ctx, req, bytes.NewReader(data))
	}
	object, err := a.fetch(ctx, *f.Object)
	if err != nil {
		return err
	}
	defer object.Close()
	st, err := object.Stat()
	if err != nil {
		return err
	}
	req.Size = st.Size()
	return m.agent.Put(ctx, req, object)
}

// fetch brings an object to this host's disk, so that its digest is checked before a byte of it is in the machine.
func (a *attempt) fetch(ctx context.Context, ref jobs.ObjectRef) (_ *os.File, err error) {
	if a.w.cfg.Objects == nil {
		return nil, &wire.Error{Kind: wire.ErrPath, Message: "this worker has no object store"}
	}
	r, err := a.w.cfg.Objects.GetObject(ctx, a.lease.Tenant, ref)
	if err != nil {
		return nil, ours(err)
	}
	defer r.Close()
	f, err := os.CreateTemp(tempDir(a.w.cfg.Dir), "object-")
	if err != nil {
		return nil, ours(err)
	}
	_ = os.Remove(f.Name()) // it lives as long as it is open, and no longer than this process
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	h, most := sha256.New(), a.spec.StepLimits(jobs.Step{}).DiskBytes
	n, err := io.Copy(io.MultiWriter(f, h), io.LimitReader(r, most+1))
	if err != nil {
		return nil, ours(err)
	}
	if n > most {
		return nil, &wire.Error{Kind: wire.ErrTooLarge, Message: fmt.Sprintf("object %s is larger than the job's disk limit of %d bytes", ref.Name, most)}
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != ref.SHA256 {
		return nil, &wire.Error{Kind: wire.ErrPath, Message: fmt.Sprintf("object %s has the digest %s, not %s", ref.Name, got, ref.SHA256)}
	}
	_, err = f.Seek(0, io.SeekStart)
	return f, err
}

// ours is an error of the host or the object store, unless that says that it has no such object, or no room for more of the tenant's.
func ours(err error) error {
	if e, ok := errors.AsType[*jobs.Error](err); ok && (e.Code == jobs.CodeNotFound || e.Code == jobs.CodeQuota) {
		return &wire.Error{Kind: wire.ErrPath, Message: e.Message}
	}
	return &failure{jobs.HostResources, err}
}

// copyOut brings the artifacts out. It runs after a failed step too; what is missing then does not hide how the step ended.
func (a *attempt) copyOut(ctx context.Context, m *machine) error {
	start := time.Now()
	defer func() { a.result.Phases.CopyOutMS = ms(time.Since(start)) }()
	ctx, cancel := context.WithTimeout(ctx, copyWithin)
	defer cancel()
	succeeded := a.result.Success()
	room := room{inline: maxInline, named: maxArtifacts}
	for _, want := range a.spec.Artifacts {
		err := a.get(ctx, m, want, &room)
		if err == nil || (want.Optional || !succeeded) && isKind(err, wire.ErrPath) {
			continue
		}
		if err := a.fileFailed(ctx, "artifact "+want.Path, err); err != nil {
			return err
		}
	}
	return nil
}

// room is what a result still has for artifacts, in bytes of JSON: for contents, and for what describes them.
type room struct{ inline, named int }

var errManyArtifacts = &wire.Error{Kind: wire.ErrTooLarge, Message: "a result cannot name that many artifacts; bring them out as one archive"}

// get brings the files of one pattern out.
func (a *attempt) get(ctx context.Context, m *machine, want jobs.Artifact, room *room) error {
	limit := want.MaxBytes
	if limit == 0 {
		limit = defaultArtifactBytes
	}
	n := 0
	err := m.agent.Get(ctx, wire.Get{Pattern: want.Path, MaxBytes: limit, MaxFiles: maxArtifactFiles}, func(h wire.FileHeader, r io.Reader) error {
		n++
		res := jobs.ArtifactResult{Path: h.Path, Size: h.Size, Mode: fmt.Sprintf("%04o", h.Mode&0o777)}
		if room.named -= jsonSize(res) + 4*sha256.Size; room.named < 0 { // two digests in hexadecimal follow
			return errManyArtifacts
		}
		sum := sha256.New()
		err := a.carry(ctx, &res, io.TeeReader(r, sum), room)
		if err == nil {
			res.SHA256 = hex.EncodeToString(sum.Sum(nil))
			a.result.Artifacts = append(a.result.Artifacts, res)
		}
		return err
	})
	if err == nil && n == 0 {
		return &wire.Error{Kind: wire.ErrPath, Message: "no such file"}
	}
	return err
}

// carry puts an artifact's bytes into the result where they are few and fit, and into the object store otherwise.
func (a *attempt) carry(ctx context.Context, res *jobs.ArtifactResult, r io.Reader, room *room) error {
	if res.Size <= min(jobs.MaxInlineArtifact, int64(room.inline)) {
		b, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		content := jobs.ContentOf(b)
		if size := jsonSize(content); size <= room.inline {
			room.inline -= size
			res.Content = content
			return nil
		}
		r = bytes.NewReader(b)
	}
	if a.w.cfg.Objects == nil {
		return &wire.Error{Kind: wire.ErrTooLarge, Message: "too large for the result, and this worker has no object store"}
	}
	ref, err := a.w.cfg.Objects.PutObject(ctx, a.lease.Tenant, r)
	var said *wire.Error
	switch {
	case errors.As(err, &said) || errors.Is(err, client.ErrLost): // the guest's end, while its file was read
		return err
	case err != nil:
		return ours(fmt.Errorf("store artifact: %w", err))
	}
	res.Object = &ref
	return nil
}

func isKind(err error, kind string) bool {
	var e *wire.Error
	return errors.As(err, &e) && e.Kind == kind
}

// fileFailed writes a file's failure into the result where it is the job's own, and gives it back where it is ours.
func (a *attempt) fileFailed(ctx context.Context, what string, err error) error {
	var host *failure
	if cause := context.Cause(ctx); cause != nil && (!errors.Is(cause, context.DeadlineExceeded) || !errors.As(err, &host)) {
		return cause // but where it took too long, whoever is to blame for that is
	}
	var e *wire.Error
	if errors.As(err, &e) && e.Kind != wire.ErrAgent && e.Kind != wire.ErrRequest {
		a.result.Ending, a.result.Reason = jobs.FileFailed, what+": "+e.Message
		return nil
	}
	return err
}
