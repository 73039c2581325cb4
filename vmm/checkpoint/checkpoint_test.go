package checkpoint_test

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/vmm/checkpoint"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// random is so many blocks, of which about a third are zero, and a tail that is no whole block.
func random(r *rand.Rand, blocks, tail int) []byte {
	b := make([]byte, blocks*checkpoint.Block+tail)
	for i := 0; i < len(b); i += checkpoint.Block {
		if r.IntN(3) > 0 {
			for j := i; j < min(i+checkpoint.Block, len(b)); j++ {
				b[j] = byte(r.Uint32())
			}
		}
	}
	return b
}

// changed is b with some blocks replaced, and some zeroed.
func changed(r *rand.Rand, b []byte) []byte {
	b = bytes.Clone(b)
	for i := 0; i < len(b); i += checkpoint.Block {
		switch block := b[i:min(i+checkpoint.Block, len(b))]; r.IntN(4) {
		case 0:
			block[r.IntN(len(block))]++
		case 1:
			clear(block)
		}
	}
	return b
}

// sparse writes a file whose zero blocks are holes.
func sparse(t testing.TB, path string, b []byte) {
	t.Helper()
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	must(t, f.Truncate(int64(len(b))))
	for i := 0; i < len(b); i += checkpoint.Block {
		if block := b[i:min(i+checkpoint.Block, len(b))]; bytes.Count(block, []byte{0}) < len(block) {
			_, err := f.WriteAt(block, int64(i))
			must(t, err)
		}
	}
}

// A line of deltas, however each was made, is flattened to what the last one was made of.
func TestFlatten(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		dir := t.TempDir()
		now := random(r, 1+r.IntN(700), r.IntN(2)*1000)
		base := filepath.Join(dir, "base")
		sparse(t, base, now)
		before := base
		var layers []checkpoint.Layer
		for range 1 + r.IntN(4) {
			now = changed(r, now)
			layer := t.TempDir()
			path := filepath.Join(t.TempDir(), "now")
			sparse(t, path, now)
			delta(t, layer, before, path, now, r.IntN(2) == 0)
			must(t, os.WriteFile(filepath.Join(layer, "state"), []byte(layer), 0o444))
			layers = append(layers, checkpoint.Layer{Dir: layer, Files: []string{"memory", "state"}})
			before = path
		}
		flat := t.TempDir()
		must(t, checkpoint.Flatten(flat, func(string) string { return base }, layers))
		got, err := os.ReadFile(filepath.Join(flat, "memory"))
		must(t, err)
		if !bytes.Equal(got, now) {
			t.Errorf("seed %d: %d layers give something else", seed, len(layers))
		}
		if state, _ := os.ReadFile(filepath.Join(flat, "state")); string(state) != layers[len(layers)-1].Dir {
			t.Errorf("state is %s's", state)
		}
		st, err := os.Stat(filepath.Join(flat, "memory"))
		must(t, err)
		if st.Mode().Perm() != 0o444 {
			t.Errorf("mode %v", st.Mode())
		}
	}
}

// delta makes one by putting the content piece by piece, in any order, or by comparing files.
func delta(t testing.TB, dir, before, path string, now []byte, put bool) {
	t.Helper()
	old, err := os.Open(before)
	must(t, err)
	defer old.Close()
	d, err := checkpoint.NewDelta(dir, "memory", old, int64(len(now)))
	must(t, err)
	defer d.Close()
	if put {
		const piece = 300 * checkpoint.Block
		for at := (len(now) - 1) / piece * piece; at >= 0; at -= piece {
			must(t, d.Put(int64(at/checkpoint.Block), now[at:min(at+piece, len(now))]))
		}
	} else {
		f, err := os.Open(path)
		must(t, err)
		defer f.Close()
		must(t, d.Compare(f, nil))
	}
	n, err := d.Finish()
	must(t, err)
	was, err := os.ReadFile(before)
	must(t, err)
	want := int64(0)
	for i := 0; i < len(now); i += checkpoint.Block {
		if end := min(i+checkpoint.Block, len(now)); !bytes.Equal(was[i:end], now[i:end]) {
			want += checkpoint.Block
		}
	}
	if n != want {
		t.Errorf("%d bytes differ, want %d", n, want)
	}
}

// A process's private pages of a file are those that it wrote, and nothing else.
func TestPrivate(t *testing.T) {
	const pages = 5000
	fd, err := unix.MemfdCreate("test", 0)
	must(t, err)
	f := os.NewFile(uintptr(fd), "test")
	defer f.Close()
	must(t, f.Truncate(pages*checkpoint.Block))
	_, err = f.WriteAt([]byte("the file's"), 7*checkpoint.Block)
	must(t, err)
	mapped, err := unix.Mmap(fd, 0, pages*checkpoint.Block, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	must(t, err)
	defer unix.Munmap(mapped)
	_ = mapped[7*checkpoint.Block] // read, not written
	m, err := checkpoint.OpenMemory(os.Getpid(), f, pages*checkpoint.Block)
	must(t, err)
	defer m.Close()
	p, err := m.Read()
	must(t, err)
	if len(p.Extents) > 0 {
		t.Errorf("nothing was written: %v", p.Extents)
	}
	must(t, m.Reserve())
	want := []checkpoint.Extent{{First: 3, Count: 1}, {First: 10, Count: 100}, {First: 200, Count: 1}, {First: 202, Count: 4000}, {First: pages - 1, Count: 1}}
	for _, e := range want {
		for i := e.First; i < e.First+e.Count; i++ {
			mapped[i*checkpoint.Block+i%100] = byte(i) | 1
		}
	}
	must(t, unix.Mprotect(mapped[50*checkpoint.Block:60*checkpoint.Block], unix.PROT_READ)) // the mapping is in pieces now
	p, err = m.Read()
	if err == nil {
		if diff := cmp.Diff(want, p.Extents); diff != "" {
			t.Errorf("private pages (-want +got):\n%s", diff)
		}
		at := 0
		for _, e := range p.Extents {
			n := int(e.Count * checkpoint.Block)
			if !bytes.Equal(p.Data[at:at+n], mapped[e.First*checkpoint.Block:][:n]) {
				t.Errorf("pages from %d on hold something else", e.First)
			}
			at += n
		}
	}
	must(t, err)
	for block, want := range map[int64]bool{0: false, 3: true, 4: false, 10: true, 109: true, 110: false, 201: false, pages - 1: true} {
		if p.Contains(block) != want {
			t.Errorf("contains %d: %t", block, !want)
		}
	}
	if _, err := checkpoint.OpenMemory(os.Getpid(), f, (pages+1)*checkpoint.Block); err == nil {
		t.Error("more than is mapped")
	}
}

// An index that is not one is an error, and never a write out of the file.
func FuzzIndex(f *testing.F) {
	for _, s := range []string{
		`{"format":1,"size":40960,"block":4096,"extents":[0,1,3,2]}`, `{"format":1,"size":1,"block":4096,"extents":[0,2]}`,
		`{"format":1,"size":40960,"block":4096,"extents":[3,1,3,1]}`, `{"format":1,"size":40960,"block":4096,"extents":[9223372036854775807,2]}`, `{}`, ``,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		path := filepath.Join(t.TempDir(), "x")
		must(t, os.WriteFile(path, []byte(s), 0o600))
		x, err := checkpoint.ReadIndex(path)
		if err != nil {
			if !strings.Contains(err.Error(), path) {
				t.Errorf("%v does not name the file", err)
			}
			return
		}
		end := int64(-1)
		for _, e := range x.Extents {
			if e.First <= end || e.Count < 1 || (e.First+e.Count-1)*checkpoint.Block >= max(x.Size, 1) {
				t.Errorf("%+v", x)
			}
			end = e.First + e.Count
		}
	})
}
