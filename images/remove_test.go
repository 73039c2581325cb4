package images_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/images"
	"github.com/paddockvm/paddock/jobs"
)

func TestRemove(t *testing.T) {
	s := open(t)
	x, y := publish(t, s, "x", "1"), publish(t, s, "y", "1")
	must(t, s.PutStage("of-x", map[string]images.Part{"root": x.Manifest.Root}))
	must(t, s.PutStage("of-y", map[string]images.Part{"root": y.Manifest.Root}))
	h := &images.Host{Store: s, Driver: newDriver()}
	ofX, _, err := h.Template(t.Context(), "x", jobs.Shape{})
	must(t, err)
	ofY, _, err := h.Template(t.Context(), "y", jobs.Shape{})
	must(t, err)

	used, err := os.Open(x.Root) // as a machine that runs has it
	must(t, err)
	defer used.Close()
	must(t, s.Remove(t.Context(), "x"))
	if b, err := io.ReadAll(used); err != nil || string(b) != "root of x1" {
		t.Errorf("a machine that runs reads %q, %v", b, err)
	}
	if _, err := s.OpenImage(t.Context(), "x"); !errors.Is(err, images.ErrNoImage) {
		t.Errorf("open: %v", err)
	}
	if _, _, err := h.Template(t.Context(), "x", jobs.Shape{}); !errors.Is(err, images.ErrNoImage) {
		t.Errorf("template: %v", err)
	}
	if _, err := os.Stat(ofX.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its template: %v", err)
	}
	if _, err := s.OpenImage(t.Context(), "y"); err != nil {
		t.Errorf("the other image: %v", err)
	}
	if _, err := os.Stat(filepath.Join(ofY.Dir, "memory")); err != nil {
		t.Errorf("the other's template: %v", err)
	}
	want := []string{y.Manifest.Kernel.SHA256, y.Manifest.Initrd.SHA256, y.Manifest.Root.SHA256, y.Manifest.Scratch.SHA256}
	slices.Sort(want)
	if diff := cmp.Diff(want, files(t, s, "blobs")); diff != "" {
		t.Errorf("blobs (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"of-y.json"}, files(t, s, "stages")); diff != "" {
		t.Errorf("stages (-want +got):\n%s", diff)
	}
	if err := s.Remove(t.Context(), "x"); !errors.Is(err, images.ErrNoImage) {
		t.Errorf("a second time: %v", err)
	}
}

// A build has put blobs into the store that no manifest names yet: removing another image must not take them.
func TestRemoveWaitsForBuilds(t *testing.T) {
	s := open(t)
	publish(t, s, "x", "1")
	release, err := reopen(t, s).Hold(t.Context())
	must(t, err)
	m, err := manifest(s, "y", "1")
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := s.Remove(ctx, "x"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("remove while another image is built: %v", err)
	}
	if _, err := s.OpenImage(t.Context(), "x"); err != nil {
		t.Errorf("the image whose removal was given up: %v", err)
	}
	again, err := s.Hold(t.Context()) // builds do not wait for each other
	must(t, err)
	again()
	_, err = s.Publish(m)
	must(t, err)
	release()
	must(t, s.Remove(t.Context(), "x"))
	if _, err := s.OpenImage(t.Context(), "y"); err != nil {
		t.Errorf("the image that was built meanwhile: %v", err)
	}
}

// The blobs of an image that is built anew stay while a template is made of them, and go with that.
func TestBuiltAnew(t *testing.T) {
	s := open(t)
	build := func(version string) images.Image {
		release, err := s.Hold(t.Context())
		must(t, err)
		defer release()
		return publish(t, s, "x", version)
	}
	blobs := func(what string, images ...images.Image) {
		t.Helper()
		var want []string
		for _, img := range images {
			m := img.Manifest
			want = append(want, m.Kernel.SHA256, m.Initrd.SHA256, m.Root.SHA256, m.Scratch.SHA256)
		}
		slices.Sort(want)
		if diff := cmp.Diff(slices.Compact(want), files(t, s, "blobs")); diff != "" {
			t.Errorf("blobs when %s (-want +got):\n%s", what, diff)
		}
	}
	h := &images.Host{Store: s, Driver: newDriver()}
	build("1")
	second := build("2")
	blobs("nobody has used the first", second)
	_, _, err := h.Template(t.Context(), "x", jobs.Shape{})
	must(t, err)
	build("3")
	fourth := build("4")
	blobs("a template of the second is there", second, fourth)
	_, _, err = h.Template(t.Context(), "x", jobs.Shape{})
	must(t, err)
	blobs("there is one of the fourth", fourth)

	must(t, s.PutStage("of-second", map[string]images.Part{"root": second.Manifest.Root}))
	must(t, s.PutStage("of-fourth", map[string]images.Part{"root": fourth.Manifest.Root}))
	old := time.Now().Add(-25 * time.Hour)
	for _, name := range []string{"of-second.json", "of-fourth.json"} {
		must(t, os.Chtimes(filepath.Join(s.Dir(), "stages", name), old, old))
	}
	build("4")
	if diff := cmp.Diff([]string{"of-fourth.json"}, files(t, s, "stages")); diff != "" {
		t.Errorf("stages (-want +got):\n%s", diff)
	}
}

// What a build under way has made is nobody's rubbish, also not when another build ends meanwhile; nor is what an image may be made of that
// cannot be read, or is another version's.
func TestBuiltAnewTakesNothingThatMayBeAnothers(t *testing.T) {
	s := open(t)
	release, err := reopen(t, s).Hold(t.Context())
	must(t, err)
	y, err := manifest(s, "y", "1")
	must(t, err)
	other, err := s.Hold(t.Context())
	must(t, err)
	publish(t, s, "x", "1")
	x := publish(t, s, "x", "2")
	other()
	_, err = s.Publish(y)
	must(t, err)
	file := filepath.Join(s.Dir(), "images", "y.json")
	b, err := os.ReadFile(file)
	must(t, err)
	for name, broken := range map[string][]byte{"cut": b[:40], "another version's": bytes.Replace(b, []byte(`"format": 1`), []byte(`"format": 99`), 1)} {
		if bytes.Equal(b, broken) {
			t.Fatalf("%s: it is as it was", name)
		}
		must(t, os.WriteFile(file, broken, 0o644))
		hold, err := s.Hold(t.Context())
		must(t, err)
		hold()
	}
	before := files(t, s, "blobs")
	must(t, os.WriteFile(file, b, 0o644))
	release()
	if got, err := s.OpenImage(t.Context(), "x"); err != nil || got.Digest != x.Digest {
		t.Errorf("the other build's image: %v", err)
	}
	if _, err := s.OpenImage(t.Context(), "y"); err != nil {
		t.Errorf("the image that was built: %v", err)
	}
	if now := files(t, s, "blobs"); len(now) != len(before)-2 {
		t.Errorf("%d blobs, then %d: the first x had two of its own", len(before), len(now))
	}
}

// Who reads an image's files when it is built anew, and the old ones are removed, gets the new image.
func TestOpenWhileBuiltAnew(t *testing.T) {
	s := open(t)
	first := publish(t, s, "x", "1")
	asked := 0
	img, err := s.OpenImage(asking{t.Context(), func() {
		if asked++; asked == 3 { // before the third of its files is read
			publish(t, s, "x", "2")
			must(t, os.Remove(first.Root))
		}
	}}, "x")
	must(t, err)
	if img.Digest == first.Digest || asked < 3+4 {
		t.Errorf("it is the old one: %t; %d files were read", img.Digest == first.Digest, asked)
	}
}

// asking is a context that tells whenever somebody asks whether it is over.
type asking struct {
	context.Context
	asked func()
}

func (a asking) Err() error {
	a.asked()
	return a.Context.Err()
}

// While a manifest cannot be read nobody knows which blobs are its own: none is taken.
func TestRemoveTakesNothingThatMayBeAnothers(t *testing.T) {
	s := open(t)
	publish(t, s, "x", "1")
	y := publish(t, s, "y", "1")
	file := filepath.Join(s.Dir(), "images", "y.json")
	b, err := os.ReadFile(file)
	must(t, err)
	must(t, os.WriteFile(file, b[:40], 0o644))
	if err := s.Remove(t.Context(), "x"); err == nil {
		t.Error("nothing is said of the manifest that cannot be read")
	}
	if _, err := s.Get("x"); !errors.Is(err, images.ErrNoImage) {
		t.Errorf("the image is still there: %v", err)
	}
	must(t, os.WriteFile(file, b, 0o644))
	if got, err := s.OpenImage(t.Context(), "y"); err != nil || got.Digest != y.Digest {
		t.Errorf("the image whose manifest is there again: %v", err)
	}
}

// Nor is what may be an image's that another version has built.
func TestRemoveTakesNothingOfAnotherVersion(t *testing.T) {
	s := open(t)
	publish(t, s, "x", "1")
	y := publish(t, s, "y", "1")
	file := filepath.Join(s.Dir(), "images", "y.json")
	b, err := os.ReadFile(file)
	must(t, err)
	must(t, os.WriteFile(file, bytes.Replace(b, []byte(`"format": 1`), []byte(`"format": 99`), 1), 0o644))
	if err := s.Remove(t.Context(), "x"); err == nil || !strings.Contains(err.Error(), "y has the format 99") {
		t.Errorf("of the other version's image is said: %v", err)
	}
	must(t, os.WriteFile(file, b, 0o644))
	if got, err := s.OpenImage(t.Context(), "y"); err != nil || got.Digest != y.Digest {
		t.Errorf("the other version's image: %v", err)
	}
}

// A store's path may hold what is a pattern elsewhere: what is in it is found all the same, and stays.
func TestStoreWithBrackets(t *testing.T) {
	s, err := images.Open(filepath.Join(t.TempDir(), `a[b]*\`))
	must(t, err)
	x := publish(t, s, "x", "1")
	publish(t, s, "y", "1")
	r := newRanch(t, s)
	tmpl, _, err := r.Template(t.Context(), "x", jobs.Shape{})
	must(t, err)
	m := born(t, tmpl)
	kept := r.keep(m, "", jobs.SnapshotRequest{})
	for _, sub := range []string{"tmp/build-x-1", "snapshots/kept/" + jobs.NewID() + ".tmp"} {
		must(t, os.Mkdir(filepath.Join(s.Dir(), sub), 0o755))
	}
	must(t, s.Remove(t.Context(), "y"))
	release, err := s.Hold(t.Context())
	must(t, err)
	release()
	_, err = r.Snapshots.Collect(t.Context(), images.Policy{})
	must(t, err)
	if got, err := reopen(t, s).OpenImage(t.Context(), "x"); err != nil || got.Digest != x.Digest {
		t.Errorf("the image that stays: %v", err)
	}
	if list, err := s.List(); err != nil || len(list) != 1 {
		t.Errorf("%d images are listed: %v", len(list), err)
	}
	if len(r.Templates()["x"]) != 1 {
		t.Error("its template is gone")
	}
	if got := len(files(t, s, "tmp")) + len(files(t, s, "snapshots/kept")); got != 1 {
		t.Errorf("left: %v %v", files(t, s, "tmp"), files(t, s, "snapshots/kept"))
	}
	r.is(kept, m.memory, m.disk, m.devices)
}

func TestLock(t *testing.T) {
	s := open(t)
	release, err := s.Lock(t.Context(), "a")
	must(t, err)
	other, err := s.Lock(t.Context(), "b")
	must(t, err)
	other()
	why := errors.New("the caller has gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	waits := make(chan error)
	go func() {
		_, err := reopen(t, s).Lock(ctx, "a")
		waits <- err
	}()
	cancel(why)
	if err := <-waits; !errors.Is(err, why) {
		t.Errorf("a wait that was given up: %v", err)
	}
	release()
	release, err = s.Lock(t.Context(), "a") // also when the other one's wait is served first
	must(t, err)
	release()
}

// The locks of what is not there any more go, but for those that somebody has.
func TestLocksGo(t *testing.T) {
	s := open(t)
	h := &images.Host{Store: s, Driver: newDriver()}
	for _, version := range []string{"1", "2", "3"} {
		publish(t, s, "x", version)
		_, _, err := h.Template(t.Context(), "x", jobs.Shape{})
		must(t, err)
	}
	locked, err := s.Lock(t.Context(), images.ImageLock("y"))
	must(t, err)
	unlocked, err := s.Lock(t.Context(), images.ImageLock("z"))
	must(t, err)
	unlocked()
	hold, err := s.Hold(t.Context())
	must(t, err)
	hold()
	_, key, err := h.Template(t.Context(), "x", jobs.Shape{})
	must(t, err)
	if diff := cmp.Diff([]string{"hits", "image-y", "store", "template-" + key}, files(t, s, "locks")); diff != "" {
		t.Errorf("locks (-want +got):\n%s", diff)
	}
	locked()
}

// Who waits for a lock whose file is removed meanwhile has the lock that others take.
func TestLockRemovedUnderWaiter(t *testing.T) {
	s := open(t)
	first, err := s.Lock(t.Context(), "a")
	must(t, err)
	file := filepath.Join(s.Dir(), "locks", "a")
	info, err := os.Stat(file)
	must(t, err)
	inode := fmt.Sprintf(":%d ", info.Sys().(*syscall.Stat_t).Ino)
	second := make(chan func())
	go func() {
		release, err := s.Lock(t.Context(), "a")
		if err != nil {
			t.Error(err)
		}
		second <- release
	}()
	for waits := false; !waits; { // as the kernel tells it: proc_locks(5)
		b, err := os.ReadFile("/proc/locks")
		must(t, err)
		for line := range strings.Lines(string(b)) {
			waits = waits || strings.Contains(line, "->") && strings.Contains(line, inode)
		}
	}
	must(t, os.Remove(file))
	first()
	release := <-second
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if both, err := s.Lock(ctx, "a"); err == nil {
		t.Error("two have it")
		both()
	}
	release()
}

// dyingBuild is another process: a build that is killed when it has made a stage, some blobs and half a file.
func dyingBuild(dir string) {
	release, err := halfBuild(dir)
	fmt.Println("made", err)
	_, _ = os.Stdin.Read(make([]byte, 1)) // until it is killed
	release()
}

func halfBuild(dir string) (release func(), err error) {
	s, err := images.Open(dir)
	if err != nil {
		return nil, err
	}
	unlock, err := s.Lock(context.Background(), "image-x")
	if err != nil {
		return nil, err
	}
	done, err := s.Hold(context.Background())
	if err != nil {
		return nil, err
	}
	m, err := manifest(s, "x", "1")
	if err != nil {
		return nil, err
	}
	work, err := s.Temp("build-")
	return func() { done(); unlock() }, errors.Join(err, s.PutStage("root", map[string]images.Part{"root": m.Root}),
		os.WriteFile(filepath.Join(work, "half"), []byte("half"), 0o444))
}

func TestKilledBuildLeavesNothingWholeAndNothingLocked(t *testing.T) {
	s := open(t)
	self, err := os.Executable()
	must(t, err)
	cmd := exec.CommandContext(t.Context(), self, "build", s.Dir())
	out, err := cmd.StdoutPipe()
	must(t, err)
	in, err := cmd.StdinPipe()
	must(t, err)
	defer in.Close()
	must(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "made <nil>\n" {
		t.Fatalf("the build says %q, %v", line, err)
	}
	// While it lives, its work in progress is left alone.
	hold, err := s.Hold(t.Context())
	must(t, err)
	hold()
	if got := files(t, s, "tmp"); len(got) != 1 {
		t.Errorf("in tmp: %v", got)
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()

	if list, err := s.List(); err != nil || len(list) > 0 {
		t.Errorf("list: %v, %v", list, err)
	}
	release, err := s.Lock(t.Context(), "image-x")
	must(t, err)
	defer release()
	hold, err = s.Hold(t.Context())
	must(t, err)
	defer hold()
	if got := files(t, s, "tmp"); len(got) > 0 {
		t.Errorf("the dead build's work in progress is still there: %v", got)
	}
	var stage map[string]images.Part
	if !s.Stage("root", &stage) || !s.Has(t.Context(), stage["root"]) {
		t.Error("the stage that it had finished is lost")
	}
}

// A stage is only as good as its files.
func TestHas(t *testing.T) {
	s := open(t)
	img := publish(t, s, "x", "1")
	p := img.Manifest.Root
	for range 2 {
		if !s.Has(t.Context(), p) {
			t.Error("it is not there")
		}
	}
	flip(t, img.Root, 0)
	if s.Has(t.Context(), p) {
		t.Error("a corrupt file passes")
	}
	must(t, os.Remove(img.Root))
	for name, p := range map[string]images.Part{"removed": p, "none": {}, "a path": {SHA256: "../images/x.json"}, "the directory": {SHA256: "."}} {
		if s.Has(t.Context(), p) {
			t.Errorf("%s: it is there", name)
		}
	}
	var stage map[string]images.Part
	must(t, os.WriteFile(filepath.Join(s.Dir(), "stages", "cut.json"), []byte(`{"root":{"sha`), 0o644))
	if s.Stage("cut", &stage) || s.Stage("none", &stage) {
		t.Error("a stage that is none")
	}
}

// A directory's name is a name, whatever patterns mean by it: its images are found, what they are made of stays, and what is another's too.
func TestRemoveBelowABracket(t *testing.T) {
	dir := t.TempDir()
	other, err := images.Open(filepath.Join(dir, "a"))
	must(t, err)
	theirs, err := other.Temp("work-")
	must(t, err)
	s, err := images.Open(filepath.Join(dir, "[ab]*"))
	must(t, err)
	ours, err := s.Temp("work-")
	must(t, err)
	publish(t, s, "x", "1")
	y := publish(t, s, "y", "1")
	must(t, s.Remove(t.Context(), "x"))
	if list, err := s.List(); err != nil || len(list) != 1 || list[0].Digest != y.Digest {
		t.Errorf("list %v, %v", list, err)
	}
	if _, err := s.OpenImage(t.Context(), "y"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(theirs); err != nil {
		t.Error("another store's:", err)
	}
	if _, err := os.Stat(ours); !errors.Is(err, os.ErrNotExist) {
		t.Error("what was left behind is there still:", err)
	}
}

// An image directory that cannot be read is not one without images, of whose parts nobody has any use.
func TestRemoveUnlisted(t *testing.T) {
	s := open(t)
	y := publish(t, s, "y", "1")
	must(t, os.Rename(filepath.Join(s.Dir(), "images"), filepath.Join(s.Dir(), "aside")))
	if err := s.Remove(t.Context(), "x"); err == nil {
		t.Error("removed")
	}
	if release, err := s.Hold(t.Context()); err == nil {
		release()
	}
	must(t, os.Rename(filepath.Join(s.Dir(), "aside"), filepath.Join(s.Dir(), "images")))
	if got, err := s.OpenImage(t.Context(), "y"); err != nil || got.Digest != y.Digest {
		t.Errorf("open: %v", err)
	}
}
