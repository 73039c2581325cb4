package bus_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/paddockvm/paddock/bus/access"
	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/jobs"
)

// tenantOf is a tenant as any client of NATS is one, with nothing but a credential.
type tenantOf struct {
	*testing.T
	nc   *nats.Conn
	name string
}

// ask sends a request, with a header where that is not empty.
func (c *tenantOf) ask(op, header string, body []byte) (r jobs.ObjectReply, piece []byte) {
	c.Helper()
	m := nats.NewMsg("paddock.v1.object." + c.name + "." + op)
	if m.Data = body; header != "" {
		m.Header.Set("Paddock-Object", header)
	}
	answer, err := c.nc.RequestMsg(m, time.Minute)
	if err != nil {
		c.Fatal(op, err)
	}
	data := answer.Data
	if h := answer.Header.Get("Paddock-Object"); h != "" {
		data, piece = []byte(h), answer.Data
	}
	if err := json.Unmarshal(data, &r); err != nil {
		c.Fatalf("%s: %v in %.200q", op, err, data)
	}
	return r, piece
}

// put sends a piece, and asks again while all is there and not stored yet, as docs/nats.md has clients do.
func (c *tenantOf) put(sum string, size, offset int, piece []byte) (r jobs.ObjectReply) {
	c.Helper()
	header := fmt.Sprintf(`{"sha256":%q,"size":%d,"offset":%d}`, sum, size, offset)
	r, _ = c.ask("put", header, piece)
	for end := time.Now().Add(time.Minute); r.Error == nil && !r.Stored && r.Next == int64(size); r, _ = c.ask("put", header, nil) {
		if time.Now().After(end) {
			c.Fatalf("waited a minute, and it is still being stored: %+v", r)
		}
	}
	return r
}

func (c *tenantOf) refused(what string, want jobs.Code, r jobs.ObjectReply) {
	c.Helper()
	if r.Error == nil || r.Error.Code != want {
		c.Errorf("%s: got %+v, want %s", what, r, want)
	}
}

func tenantsOn(t *testing.T) (s *bustest.Server, acme *tenantOf) {
	t.Helper()
	s = bustest.StartGuarded(t)
	nc := s.As(s.Let(access.Tenant, "acme"), nats.CustomInboxPrefix("_INBOX_acme"))
	return s, &tenantOf{t, nc, "acme"}
}

// A tenant puts an object in pieces, some of them twice, as answers that are lost have it do, and gets it in pieces.
func TestObjectsByMessages(t *testing.T) {
	s, acme := tenantsOn(t)
	bustest.Serve(t, s.Dispatcher(), &bustest.Brain{})
	content := bytes.Repeat([]byte("0123456789abcdef"), 300<<10/16*10)
	sum := digest(content)
	name := fmt.Sprintf(`{"sha256":%q}`, sum)
	r, _ := acme.ask("stat", "", []byte(name))
	acme.refused("stat of none", jobs.CodeNotFound, r)
	r, _ = acme.ask("get", "", []byte(name))
	acme.refused("get of none", jobs.CodeNotFound, r)
	const n = 300 << 10
	for range 2 {
		for from := 0; from < len(content); from += n {
			for range 2 {
				if r = acme.put(sum, len(content), from, content[from:min(from+n, len(content))]); r.Error != nil {
					t.Fatal(r.Error)
				}
			}
		}
		if !r.Stored {
			t.Fatalf("it is not stored: %+v", r)
		}
	}
	if r, _ = acme.ask("stat", "", []byte(name)); r.Error != nil || r.Size != int64(len(content)) {
		t.Errorf("stat: %+v", r)
	}
	var got []byte
	for int64(len(got)) < r.Size {
		var piece []byte
		if r, piece = acme.ask("get", "", fmt.Appendf(nil, `{"sha256":%q,"offset":%d}`, sum, len(got))); r.Error != nil || len(piece) == 0 || r.Offset != int64(len(got)) {
			t.Fatalf("get from %d: %+v, %d bytes", len(got), r, len(piece))
		}
		got = append(got, piece...)
	}
	if !bytes.Equal(got, content) {
		t.Errorf("%d bytes came back as %d others", len(content), len(got))
	}
	if r, piece := acme.ask("get", "", fmt.Appendf(nil, `{"sha256":%q,"offset":10,"max_bytes":4}`, sum)); r.Error != nil || string(piece) != "abcd" {
		t.Errorf("%q, %+v", piece, r)
	}
}

// What is wrong is said, as everywhere.
func TestObjectsRefused(t *testing.T) {
	s, acme := tenantsOn(t)
	d := s.Dispatcher()
	bustest.Serve(t, d, &bustest.Brain{})
	theirs, err := d.PutObject(t.Context(), "victim", strings.NewReader("secret"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		what, op, header, body string
		want                   jobs.Code
	}{
		{"nothing of the kind", "delete", "", "{}", jobs.CodeInvalid},
		{"no digest", "stat", "", "{}", jobs.CodeInvalid},
		{"a name that is no digest", "get", "", `{"sha256":"../x"}`, jobs.CodeInvalid},
		{"another's", "get", "", fmt.Sprintf(`{"sha256":%q}`, theirs.SHA256), jobs.CodeNotFound},
		{"no header", "put", "", "x", jobs.CodeInvalid},
		{"no JSON in it", "put", "x", "x", jobs.CodeInvalid},
		{"too large", "put", fmt.Sprintf(`{"sha256":%q,"size":5000000000}`, theirs.SHA256), "x", jobs.CodeTooLarge},
		{"beyond its size", "put", fmt.Sprintf(`{"sha256":%q,"size":3}`, theirs.SHA256), "four", jobs.CodeInvalid},
		{"before its beginning", "get", "", fmt.Sprintf(`{"sha256":%q,"offset":-1}`, theirs.SHA256), jobs.CodeInvalid},
	} {
		r, _ := acme.ask(tt.op, tt.header, []byte(tt.body))
		acme.refused(tt.what, tt.want, r)
	}
	acme.refused("another digest", jobs.CodeInvalid, acme.put(theirs.SHA256, 4, 0, []byte("four")))
	if _, err := d.GetObject(t.Context(), "acme", theirs); code(err) != jobs.CodeNotFound {
		t.Errorf("something was stored: %v", err)
	}
}

// A tenant whose bucket is full is told so.
func TestObjectsFull(t *testing.T) {
	s, acme := tenantsOn(t)
	d := s.Dispatcher()
	bustest.Serve(t, d, &bustest.Brain{})
	ops := s.As(s.Let(access.Operator, "ada"))
	small(t, ops, "acme")
	content := bytes.Repeat([]byte("x"), 1<<20+1<<19)
	if r := acme.put(digest(content), len(content), 0, content[:1<<20]); r.Error != nil {
		t.Fatal(r.Error)
	}
	r := acme.put(digest(content), len(content), 1<<20, content[1<<20:])
	acme.refused("more than there is room for", jobs.CodeQuota, r)
	if r.Error != nil && r.Error.RetryAfterMS == 0 {
		t.Error("it does not say when to come again")
	}
}

// What has another name than its digest is given to who has a job that names it, and to nobody else.
func TestObjectOfJob(t *testing.T) {
	s, acme := tenantsOn(t)
	brain := &bustest.Brain{}
	d := s.Dispatcher()
	bustest.Serve(t, d, brain)
	js := bustest.JetStream(t, s.As(s.Let(access.Operator, "ada")))
	for _, tenant := range []string{"acme", "victim"} {
		o, err := js.CreateObjectStore(t.Context(), jetstream.ObjectStoreConfig{Bucket: jobs.ObjectBucket(tenant)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := o.PutString(t.Context(), "data.bin", tenant); err != nil {
			t.Fatal(err)
		}
	}
	job := map[string]string{}
	for _, tenant := range []string{"acme", "victim"} {
		ref := jobs.ObjectRef{Name: "data.bin", SHA256: digest([]byte(tenant))}
		j, _, err := brain.Admit(t.Context(), tenant, &jobs.Spec{Language: "python", Source: "1", Files: []jobs.File{{Path: "x", Object: &ref}}})
		if err != nil {
			t.Fatal(err)
		}
		job[tenant] = j.ID
	}
	ask := func(tenant, content string) []byte {
		return fmt.Appendf(nil, `{"sha256":%q,"job":%q}`, digest([]byte(content)), job[tenant])
	}
	if r, piece := acme.ask("get", "", ask("acme", "acme")); r.Error != nil || string(piece) != "acme" {
		t.Errorf("got %+v, %q", r, piece)
	}
	if r, _ := acme.ask("stat", "", ask("acme", "acme")); r.Error != nil || r.Size != 4 {
		t.Errorf("got %+v", r)
	}
	for what, body := range map[string][]byte{
		"without a job":  fmt.Appendf(nil, `{"sha256":%q}`, digest([]byte("acme"))),
		"another's job":  ask("victim", "victim"),
		"another object": ask("acme", "victim"),
	} {
		for _, op := range []string{"stat", "get"} {
			r, _ := acme.ask(op, "", body)
			acme.refused(what, jobs.CodeNotFound, r)
		}
	}
}
