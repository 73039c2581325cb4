package asynqin_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/paddockvm/paddock/dispatcher/asynqin"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/harness"
)

// works shows that everything that touches Redis works: a result, one beside the task, an archived task, a retry, a cancel, a handed back task.
func (r *rig) works() {
	r.Helper()
	stop := r.bridge()
	retain := asynq.Retention(time.Hour)
	r.untilState(r.run("print a", retain), asynq.TaskStateCompleted)
	gone := r.run("print b", asynq.Unique(time.Minute), asynq.Queue("paddock:low"))
	r.untilGone(gone)
	if out := r.kept(gone).Steps[0].Stdout.Text; out != "b\n" {
		r.Errorf("kept %q", out)
	}
	failed := r.run("infra")
	r.untilState(failed, asynq.TaskStateRetry)
	if err := r.inspect.DeleteTask(failed.Queue, failed.ID); err != nil { // asynq would try it again after 15 to 45 s, with another job
		r.Fatal(err)
	}
	held := r.run("hold")
	r.untilState(held, asynq.TaskStateActive)
	r.until("the job", func() bool { return len(r.brain.all()) == 4 })
	r.until("the cancel", func() bool { // the subscription may just be being made
		if err := r.inspect.CancelProcessing(held.ID); err != nil {
			r.Fatal(err)
		}
		return r.brain.all()[3].CancelRequested
	})
	r.untilState(held, asynq.TaskStateArchived)
	back := r.run("hold", asynq.Queue("paddock:critical"), retain)
	r.until("the job", func() bool { return len(r.brain.all()) == 5 })
	stop()
	r.untilState(back, asynq.TaskStatePending)
	r.bridge()
	r.untilState(back, asynq.TaskStateActive)
	r.brain.letGo()
	r.untilState(back, asynq.TaskStateCompleted)
	r.wantJobs(5)
}

func TestTLS(t *testing.T) {
	for _, binary := range harness.NeedRedis(t) {
		t.Run(binary, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			pair, roots := certificate(t, dir)
			s := harness.StartRedis(t, harness.RedisOptions{Binary: binary, Args: []string{
				"--tls-port", fmt.Sprint(harness.FreePort(t)), "--port", "0", "--tls-cert-file", filepath.Join(dir, "cert.pem"), "--tls-key-file", filepath.Join(dir, "key.pem"),
				"--tls-ca-cert-file", filepath.Join(dir, "cert.pem"), "--tls-auth-clients", "yes", "--requirepass", "sesame",
			}})
			url := "rediss://127.0.0.1:" + s.Setting("--tls-port")
			newRig(t, url, asynqin.Access{Password: "sesame", TLS: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}}).works()
			for what, a := range map[string]asynqin.Access{
				"no authority":   {Password: "sesame"},
				"no certificate": {Password: "sesame", TLS: &tls.Config{RootCAs: roots}},
				"no password":    {TLS: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}},
			} {
				if err := open(t, url, a).Set(t.Context(), "k", "v", 0).Err(); err == nil {
					t.Errorf("with %s it is let in", what)
				}
			}
		})
	}
}

// certificate makes one of 127.0.0.1 that is its own authority, as cert.pem and key.pem.
func certificate(t *testing.T, dir string) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert, keyPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
	for name, b := range map[string][]byte{"cert.pem": cert, "key.pem": keyPEM} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pair, err := tls.X509KeyPair(cert, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(cert)
	return pair, pool
}

func TestCluster(t *testing.T) {
	for _, binary := range harness.NeedRedis(t) {
		t.Run(binary, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, harness.StartRedisCluster(t, binary), asynqin.Access{})
			slots := map[int64]bool{}
			for _, q := range []string{"critical", "default", "low"} {
				slot, err := r.inspect.ClusterKeySlot("paddock:" + q)
				if err != nil {
					t.Fatal(err)
				}
				slots[slot/5462] = true
			}
			if len(slots) < 2 {
				t.Errorf("all queues are on one node: %v", slots)
			}
			r.works()
		})
	}
}

// Where the server has a replica, that has been asked to have it too which job a task is before there is the job.
func TestReplicated(t *testing.T) {
	for _, binary := range harness.NeedRedis(t) {
		for name, replicas := range map[string]int{"none": 0, "one": 1} {
			t.Run(binary+" "+name, func(t *testing.T) {
				t.Parallel()
				main := harness.StartRedis(t, harness.RedisOptions{Binary: binary})
				r := newRig(t, main.URL(), asynqin.Access{})
				var replica *harness.Redis
				if replicas > 0 {
					replica = harness.StartRedis(t, harness.RedisOptions{Binary: binary, Args: []string{"--replicaof", fmt.Sprintf("127.0.0.1 %d", main.Port)}})
					r.until("the replica", func() bool {
						return strings.Contains(r.plain.Info(t.Context(), "replication").Val(), "state=online")
					})
				}
				asked := make(chan string, 1)
				r.brain.refuse = func(string, *jobs.Spec) error {
					asked <- r.plain.Info(t.Context(), "commandstats").Val()
					return nil
				}
				r.bridge()
				task := r.run("print a", asynq.Retention(time.Hour))
				r.untilState(task, asynq.TaskStateCompleted)
				if before := strings.Contains(<-asked, "cmdstat_wait:"); before != (replicas > 0) {
					t.Errorf("with %d replicas: waited before the job was admitted: %t", replicas, before)
				}
				if replica == nil {
					return
				}
				at := open(t, replica.URL(), asynqin.Access{})
				r.until("the replica's mapping", func() bool {
					return strings.Contains(at.HGet(t.Context(), "asynq:{"+task.Queue+"}:t:"+task.ID, "paddock").Val(), r.brain.all()[0].ID)
				})
			})
		}
	}
}

// In a cluster it is the node that has the task's queue whose replica is asked.
func TestReplicatedInCluster(t *testing.T) {
	for _, binary := range harness.NeedRedis(t) {
		t.Run(binary, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, harness.StartRedisCluster(t, binary), asynqin.Access{})
			owner, err := r.plain.(*redis.ClusterClient).MasterForKey(t.Context(), "asynq:{paddock:default}:t:x")
			if err != nil {
				t.Fatal(err)
			}
			id, err := owner.Do(t.Context(), "cluster", "myid").Text()
			if err != nil {
				t.Fatal(err)
			}
			bus, err := owner.ConfigGet(t.Context(), "cluster-port").Result()
			if err != nil {
				t.Fatal(err)
			}
			replica := harness.StartRedis(t, harness.RedisOptions{Binary: binary, Args: []string{
				"--cluster-enabled", "yes", "--cluster-port", fmt.Sprint(harness.FreePort(t)), "--cluster-node-timeout", harness.NodePatience,
			}}).Client(t)
			host, port, _ := net.SplitHostPort(owner.Options().Addr)
			if err := replica.Do(t.Context(), "cluster", "meet", host, port, bus["cluster-port"]).Err(); err != nil {
				t.Fatal(err)
			}
			r.until("the node", func() bool { return replica.Do(t.Context(), "cluster", "replicate", id).Err() == nil })
			r.until("the replica", func() bool {
				return strings.Contains(owner.Info(t.Context(), "replication").Val(), "state=online")
			})
			asked := make(chan string, 1)
			r.brain.refuse = func(string, *jobs.Spec) error {
				asked <- owner.Info(t.Context(), "commandstats").Val()
				return nil
			}
			r.bridge()
			r.untilState(r.run("print a", asynq.Retention(time.Hour)), asynq.TaskStateCompleted)
			if !strings.Contains(<-asked, "cmdstat_wait:") {
				t.Error("the job was admitted before the replica was asked")
			}
		})
	}
}

// The server dies, and the Sentinels make the replica the server.
func TestSentinel(t *testing.T) {
	for _, binary := range harness.NeedRedis(t) {
		t.Run(binary, func(t *testing.T) {
			t.Parallel()
			main := harness.StartRedis(t, harness.RedisOptions{Binary: binary})
			harness.StartRedis(t, harness.RedisOptions{Binary: binary, Args: []string{"--replicaof", fmt.Sprintf("127.0.0.1 %d", main.Port)}})
			r := newRig(t, harness.StartSentinels(t, binary, main), asynqin.Access{})
			r.works()
			held := r.run("hold", asynq.Retention(time.Hour))
			r.until("the job", func() bool { return len(r.brain.all()) == 6 })
			if n, err := r.plain.Do(t.Context(), "wait", 1, 5000).Int(); err != nil || n < 1 {
				t.Fatalf("%d replicas, %v", n, err)
			}
			main.Kill()
			r.brain.letGo()
			r.stateWithin(90*time.Second, held, asynq.TaskStateCompleted)
			r.wantJobs(6)
		})
	}
}

// The rights of docs/redis.md are enough for producers and for the bridge, and keep tenants apart.
func TestTenants(t *testing.T) {
	users := harness.RedisUsers(t)
	zeta := make([]any, len(users[0]))
	for i, w := range users[0] {
		zeta[i] = strings.ReplaceAll(w.(string), "acme", "zeta")
	}
	each(t, func(r *rig) {
		for _, args := range append(users, zeta) {
			if err := r.plain.Do(r.Context(), args...).Err(); err != nil {
				r.Fatalf("%q: %v", args, err)
			}
		}
		as := func(user string) string { return strings.Replace(r.at, "redis://", "redis://"+user+"@", 1) }
		own := newRig(r.T, as("acme:secret"), asynqin.Access{})
		r.redis = open(r.T, as("paddock:wrong"), asynqin.Access{Password: "other-secret"})
		r.tenants = map[string]string{"paddock": "default", "acme": "acme", "zeta": "zeta-corp"}
		r.bridge()

		retain, id := asynq.Retention(time.Hour), asynq.TaskID("one")
		task := own.run("print acme", asynq.Queue("acme:default"), retain, id)
		info := own.untilState(task, asynq.TaskStateCompleted) // it may look at its own
		other := r.run("print zeta", asynq.Queue("zeta:default"), retain, id)
		r.untilState(other, asynq.TaskStateCompleted)
		for t, tenant := range map[*asynq.TaskInfo]string{task: "acme", other: "zeta-corp"} {
			if _, err := r.brain.Await(r.Context(), tenant, r.kept(t).Job); err != nil {
				r.Errorf("%s: %v", tenant, err)
			}
		}
		if d := own.kept(task); d.Job != own.decode(info.Result).Job {
			r.Errorf("kept %+v", d)
		}
		for what, err := range map[string]error{
			"enqueue as another":  second(own.client.Enqueue(asynq.NewTask("sandbox:python", []byte("1")), asynq.Queue("zeta:default"))),
			"enqueue as default":  second(own.client.Enqueue(asynq.NewTask("sandbox:python", []byte("1")), asynq.Queue("paddock:default"))),
			"read another's task": own.plain.HGetAll(r.Context(), "asynq:{zeta:default}:t:one").Err(),
			"read its result":     own.plain.Get(r.Context(), "paddock:result:{zeta:default}:one").Err(),
			"forge a result":      own.plain.Set(r.Context(), "paddock:result:{acme:default}:one", "{}", 0).Err(),
			"forget queues":       own.plain.Del(r.Context(), "asynq:queues").Err(),
			"cancel":              own.inspect.CancelProcessing("one"),
			"empty Redis":         own.plain.FlushAll(r.Context()).Err(),
		} {
			if err == nil || !strings.Contains(err.Error(), "NOPERM") {
				r.Errorf("%s: %v", what, err)
			}
		}
		// What the bridge does besides: cancels, hands back, takes up again.
		held := r.run("hold", asynq.Queue("zeta:low"))
		r.until("the job", func() bool { return len(r.brain.all()) == 3 })
		r.until("the cancel", func() bool { return r.inspect.CancelProcessing(held.ID) == nil && r.brain.all()[2].CancelRequested })
		r.untilState(held, asynq.TaskStateArchived)
	})
}

func second[T any](_ T, err error) error { return err }

func TestOpen(t *testing.T) {
	for _, tt := range []struct{ url, want string }{
		{"redis://u:p@h:1/2", "*redis.Client"}, {"rediss://h", "*redis.Client"}, {"unix:///run/redis.sock", "*redis.Client"},
		{"redis://h:1?addr=i:2", "*redis.ClusterClient"}, {"rediss://h:1?addr=h:1", "*redis.ClusterClient"},
		{"redis://h:1?addr=i:2&master_name=m", "*redis.Client"},
		{"http://h", ""}, {"redis://h:1?nonsense=1", ""}, {"redis://h:1?addr=i:2&nonsense=1", ""}, {"redis://u:p%zz@h", ""},
	} {
		c, err := asynqin.Open(tt.url, asynqin.Access{})
		if err != nil {
			if tt.want != "" || strings.Contains(err.Error(), "p%zz") {
				t.Errorf("%s: %v", tt.url, err)
			}
			continue
		}
		if got := fmt.Sprintf("%T", c); got != tt.want {
			t.Errorf("%s is a %s, want %q", tt.url, got, tt.want)
		}
		_ = c.Close()
	}
}

func TestCheckTenants(t *testing.T) {
	for _, tt := range []struct {
		tenants map[string]string
		ok      bool
	}{
		{map[string]string{"paddock": "default", "acme": "acme"}, true},
		{map[string]string{"acme": "a", "acme2": "b", "x:y": "c"}, true},
		{map[string]string{"acme": "a", "acme:eu": "b"}, false},
		{map[string]string{"a*": "a"}, false}, {map[string]string{"a}": "a"}, false}, {map[string]string{"": "a"}, false}, {map[string]string{"a": "no tenant"}, false},
	} {
		if err := asynqin.CheckTenants(tt.tenants); (err == nil) != tt.ok {
			t.Errorf("%v: %v", tt.tenants, err)
		}
	}
}
