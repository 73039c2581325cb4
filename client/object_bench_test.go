package client_test

import (
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
)

// BenchmarkObject compares what goes by the dispatcher with what a worker does, which has rights in JetStream. Writes are synced.
func BenchmarkObject(b *testing.B) {
	const size = 100 << 20
	s := bustest.Start(b)
	d, w := s.Connect(), s.Connect()
	bustest.Serve(b, d, &bustest.Brain{})
	c, err := client.Connect(s.URL())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(c.Close)
	seed := byte(0)
	noise := func() io.Reader { // another each time, so that it is not there already
		seed++
		return io.LimitReader(rand.NewChaCha8([32]byte{seed}), size)
	}
	var ref jobs.ObjectRef
	b.Run("put", func(b *testing.B) {
		b.SetBytes(size)
		for range b.N {
			b.StopTimer()
			f, err := os.Create(filepath.Join(b.TempDir(), "f"))
			if err != nil {
				b.Fatal(err)
			}
			if _, err := io.Copy(f, noise()); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
			if ref, err = c.PutObject(b.Context(), f); err != nil {
				b.Fatal(err)
			}
			f.Close()
		}
	})
	b.Run("put-direct", func(b *testing.B) {
		b.SetBytes(size)
		for range b.N {
			if _, err := w.PutObject(b.Context(), "default", noise()); err != nil {
				b.Fatal(err)
			}
		}
	})
	for name, get := range map[string]func() (io.ReadCloser, error){
		"get":        func() (io.ReadCloser, error) { return c.GetObject(b.Context(), ref) },
		"get-direct": func() (io.ReadCloser, error) { return w.GetObject(b.Context(), "default", ref) },
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(size)
			for range b.N {
				r, err := get()
				if err != nil {
					b.Fatal(err)
				}
				if n, err := io.Copy(io.Discard, r); err != nil || n != size {
					b.Fatal(n, err)
				}
				r.Close()
			}
		})
	}
}
