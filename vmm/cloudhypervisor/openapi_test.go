package cloudhypervisor_test

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"gopkg.in/yaml.v3"
)

// published is the API's description as Cloud Hypervisor v53.0 publishes it.
const published = "../../../shared/data/cloud-hypervisor-v53.openapi.yaml"

// schema holds requests against the published description. A nil one holds nothing.
type schema struct {
	bodies map[string]*jsonschema.Schema // by method and path; nil for a request without a body
}

// openAPI reads the description; nil where it is not there.
func openAPI(t testing.TB) *schema {
	t.Helper()
	b, err := os.ReadFile(published)
	if err != nil {
		t.Logf("SKIPPED: %v: requests are not held against it", err)
		return nil
	}
	var doc map[string]any
	must(t, yaml.Unmarshal(b, &doc))
	b, err = json.Marshal(jsonLike(doc))
	must(t, err)
	doc = nil
	must(t, json.Unmarshal(b, &doc))
	schemas := doc["components"].(map[string]any)["schemas"].(map[string]any)
	// What the description leaves out, and the VMM takes (vmm/src/config.rs, RestoredNetConfig).
	schemas["RestoreConfig"].(map[string]any)["properties"].(map[string]any)["net_fds"] = map[string]any{
		"type": "array", "items": map[string]any{
			"type": "object", "required": []any{"id", "num_fds"},
			"properties": map[string]any{"id": map[string]any{"type": "string"}, "num_fds": map[string]any{"type": "integer"}},
		},
	}
	strict(schemas)
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft7)
	must(t, c.AddResource("ch.json", doc))
	s := &schema{bodies: map[string]*jsonschema.Schema{}}
	for path, methods := range doc["paths"].(map[string]any) {
		for method, operation := range methods.(map[string]any) {
			key := strings.ToUpper(method) + " " + strings.TrimPrefix(path, "/")
			s.bodies[key] = nil
			body, _ := operation.(map[string]any)["requestBody"].(map[string]any)
			if body == nil {
				continue
			}
			ref := body["content"].(map[string]any)["application/json"].(map[string]any)["schema"].(map[string]any)["$ref"].(string)
			if s.bodies[key], err = c.Compile("ch.json" + ref); err != nil {
				t.Fatal(err)
			}
		}
	}
	return s
}

// jsonLike gives maps the keys of JSON: a status is a number in YAML.
func jsonLike(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			v[k] = jsonLike(e)
		}
	case map[any]any:
		m := map[string]any{}
		for k, e := range v {
			m[fmt.Sprint(k)] = jsonLike(e)
		}
		return m
	case []any:
		for i, e := range v {
			v[i] = jsonLike(e)
		}
	}
	return v
}

// strict makes each object with named properties take no others.
func strict(v any) {
	switch v := v.(type) {
	case map[string]any:
		if _, named := v["properties"].(map[string]any); named && v["additionalProperties"] == nil {
			v["additionalProperties"] = false
		}
		for _, e := range v {
			strict(e)
		}
	case []any:
		for _, e := range v {
			strict(e)
		}
	}
}

// hold fails the test where the request is none that the description has.
func (s *schema) hold(t testing.TB, method, path string, body []byte) {
	if s == nil {
		return
	}
	if err := s.check(method, path, body); err != nil {
		t.Errorf("%s %s %s: %v", method, path, body, err)
	}
}

func (s *schema) check(method, path string, body []byte) error {
	want, known := s.bodies[method+" "+path]
	if !known {
		return fmt.Errorf("there is no %s %s", method, path)
	}
	if want == nil {
		if len(body) > 0 {
			return fmt.Errorf("it takes no body")
		}
		return nil
	}
	got, err := jsonschema.UnmarshalJSON(strings.NewReader(string(body)))
	if err != nil {
		return err
	}
	return want.Validate(got)
}

// TestSchemaRefuses wants the validator to be one.
func TestSchemaRefuses(t *testing.T) {
	s := openAPI(t)
	if s == nil {
		t.Skip("SKIPPED: no ../shared/data/cloud-hypervisor-v53.openapi.yaml beside the repository: requests are not held against it")
	}
	for body, fine := range map[string]bool{
		`{"payload":{"kernel":"/k"}}`:                                      true,
		`{"payload":{"kernel":"/k"},"memory":{"size":1}}`:                  true,
		`{"memory":{"size":1}}`:                                            false, // no payload
		`{"payload":{"kernel":"/k"},"colour":"red"}`:                       false,
		`{"payload":{"kernel":"/k","colour":"red"}}`:                       false,
		`{"payload":{"kernel":"/k"},"memory":{"size":"1"}}`:                false,
		`{"payload":{"kernel":"/k"},"serial":{"mode":"Loud"}}`:             false,
		`{"payload":{"kernel":"/k"},"disks":[{"path":"/d","ro":true}]}`:    false,
		`{"payload":{"kernel":"/k"},"cpus":{"boot_vcpus":1}}`:              false, // no max_vcpus
		`{"payload":{"kernel":"/k"},"disks":[{"image_type":"Floppy"}]}`:    false,
		`{"payload":{"kernel":"/k"},"memory":{"size":0,"zones":[{}]}}`:     false,
		`{"payload":{"kernel":"/k"},"vsock":{"cid":3,"socket":"/s"}}`:      true,
		`{"payload":{"kernel":"/k"},"landlock_rules":[{"path":"/s"}]}`:     false,
		`{"payload":{"kernel":"/k"},"rate_limit_groups":[{"id":"disks"}]}`: false,
	} {
		if err := s.check("PUT", "vm.create", []byte(body)); (err == nil) != fine {
			t.Errorf("%s: %v", body, err)
		}
	}
	if s.check("GET", "vm.create", nil) == nil || s.check("PUT", "vm.boot", []byte("{}")) == nil {
		t.Error("it takes what there is not")
	}
}
