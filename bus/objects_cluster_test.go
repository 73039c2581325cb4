package bus_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/paddockvm/paddock/bus/access"
	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/objects"
)

// On a cluster a tenant's bucket has three replicas, any of which may answer who reads: what was put is there for who asks at once, also
// while a server is lost and comes back.
func TestClusterObjects(t *testing.T) {
	c := bustest.StartCluster(t, 3)
	c.Callout()
	js := operator(t, c)
	bustest.Serve(t, dispatcher(c), &bustest.Brain{})
	seed := c.Let(access.Tenant, "acme")
	var cl *client.Client
	bustest.Eventually(t, "the tenant is let in", func() (in bool) {
		var err error
		cl, err = client.Connect(c.URL(), client.Tenant("acme"), client.Credentials(seed), client.NATS(nats.RootCAs(c.CA.File("ca.pem"))))
		return err == nil
	})
	defer cl.Close()
	ctx, cancel := context.WithDeadline(t.Context(), bustest.Patience(t))
	defer cancel()
	retry := func(do func() error) {
		t.Helper()
		for {
			err := do()
			if err == nil {
				return
			}
			if code(err) != jobs.CodeUnavailable || ctx.Err() != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	for i := range 12 {
		switch i {
		case 4:
			c.Stop(2)
		case 8:
			c.Restart(2)
			c.Healthy()
		}
		content := bytes.Repeat([]byte(strings.Repeat(string(rune('a'+i)), 100)), 20_000)
		name := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for range 2 { // the second makes it as new
			var ref jobs.ObjectRef
			retry(func() (err error) {
				ref, err = cl.PutObject(ctx, f)
				return err
			})
			retry(func() error {
				r, err := cl.GetObject(ctx, ref)
				if err != nil {
					return err
				}
				defer r.Close()
				got, err := io.ReadAll(r)
				if err == nil && !bytes.Equal(got, content) {
					t.Errorf("%d bytes came back as %d others", len(content), len(got))
				}
				return err
			})
		}
	}
	if n := replicas(t, js, "OBJ_"+jobs.ObjectBucket("acme")); n != 3 {
		t.Errorf("the bucket has %d replicas, want 3", n)
	}
	store := objects.NewJetStream(js)
	again(t, "the bucket is swept", func() error { return store.Sweep(ctx, "acme", time.Now()) }) // what puts left that were cut off, which were made again
	var l []*jetstream.ObjectInfo
	again(t, "the bucket is listed", func() error {
		o, err := js.ObjectStore(ctx, jobs.ObjectBucket("acme"))
		if err == nil {
			l, err = o.List(ctx)
		}
		return err
	})
	for _, i := range l {
		if !jobs.IsDigest(i.Name) {
			t.Errorf("there is %q", i.Name)
		}
	}
	if len(l) != 12 {
		t.Errorf("there are %d objects, want 12", len(l))
	}
}
