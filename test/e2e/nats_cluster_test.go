package e2e

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/paddockvm/paddock/bus/access"
	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/harness"
)

// A dispatcher and a worker on a cluster of three NATS servers, which ask the dispatcher who connects. Each server is lost in turn while
// jobs run, and the ones that lead the streams: every job ends once, with all of its output, and none runs twice.
func TestClusterLosesServersWhileJobsRun(t *testing.T) {
	needMachines(t)
	c := bustest.StartCluster(t, 3)
	tenant, worker, site := c.Let(access.Tenant, "acme"), c.Let(access.Worker, "w1"), c.Let(access.Worker, "w2")
	ca := c.CA.File("ca.pem")
	start(t, harness.Options{Command: "dispatcher", Args: []string{
		"--listen", "", "--nats", c.URL(), "--nats-callout", string(c.Keys), "--nats-credentials", c.Credentials, "--nats-tls-ca", ca,
	}})
	start(t, harness.Options{Command: "worker", NATS: "127.0.0.1:1", Driver: "hostproc", Args: []string{
		"--images", "base", "--name", "w1", "--vcpus", "4", "--nats", c.URL(), "--nats-creds", worker, "--nats-tls-ca", ca,
	}})
	// The second is at a site, and reaches the cluster through a leaf node.
	leaf := c.Leaf(access.Credential{NKey: public(t, c, "w2"), Identity: access.Identity{Role: access.Worker, Name: "w2"}})
	start(t, harness.Options{Command: "worker", NATS: "127.0.0.1:1", Driver: "hostproc", Args: []string{
		"--images", "base", "--name", "w2", "--vcpus", "4", "--nats", leaf, "--nats-creds", site, "--nats-tls-ca", ca,
	}})
	cl, err := client.Connect(c.URL(), client.Tenant("acme"), client.Credentials(tenant), client.NATS(nats.RootCAs(ca)))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	var stop atomic.Bool
	var g errgroup.Group
	ids := make([][]string, 8)
	for i := range ids {
		g.Go(func() error {
			for n := 0; !stop.Load(); n++ {
				spec := jobs.Spec{
					Image: "base", IdempotencyKey: fmt.Sprintf("%d-%d", i, n),
					Steps: []jobs.Step{{Shell: fmt.Sprintf("for n in 1 2 3 4 5; do echo %d-%d-$n; sleep 0.1; done", i, n)}},
				}
				for {
					try, cancel := context.WithTimeout(ctx, 10*time.Second)
					r, err := cl.Submit(try, &spec)
					cancel()
					if err == nil {
						ids[i] = append(ids[i], r.Job.ID)
						if _, err := cl.Wait(ctx, r.Job.ID); err != nil {
							return err
						}
						break
					}
					if ctx.Err() != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	lose := func(i int) {
		c.Stop(i)
		time.Sleep(3 * time.Second)
		c.Restart(i)
	}
	for i := range 3 {
		lose(i)
	}
	for _, stream := range []string{jobs.StreamEvents, jobs.StreamSubmit} {
		i := -1
		bustest.Eventually(t, stream+" has a leader", func() bool { i = c.StreamLeader(stream); return i >= 0 })
		lose(i)
	}
	stop.Store(true)
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	total, workers := 0, map[string]int{}
	for i, l := range ids {
		for n, id := range l {
			total++
			r, err := cl.Wait(ctx, id)
			if err != nil {
				t.Fatal(err)
			}
			want := ""
			for k := 1; k <= 5; k++ {
				want += fmt.Sprintf("%d-%d-%d\n", i, n, k)
			}
			wantSuccess(t, r)
			workers[r.Worker]++
			out, finals := "", 0
			for e, err := range cl.Follow(ctx, id, client.Position{}) {
				if err != nil {
					t.Fatal(err)
				}
				if e.Type == jobs.EventOutput && e.Attempt == r.Attempt {
					out += e.Text
				}
				if e.Final {
					finals++
				}
			}
			if out != want || finals != 1 {
				t.Errorf("%s, attempt %d: printed %q, want %q; %d final events", id, r.Attempt, out, want, finals)
			}
		}
	}
	t.Logf("%d jobs, by worker %v", total, workers)
	if total == 0 || workers["w1"] == 0 || workers["w2"] == 0 {
		t.Errorf("%d jobs, by worker %v: want some of each", total, workers)
	}
}

// public is the key that a name has in the file of credentials.
func public(t *testing.T, c *bustest.Cluster, name string) string {
	t.Helper()
	all, err := access.Read(c.Credentials)
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range all.List() {
		if one.Name == name {
			return one.NKey
		}
	}
	t.Fatal("no key of " + name)
	return ""
}
