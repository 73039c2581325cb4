// Package schema holds the contract's JSON Schemas (draft 2020-12), for clients in any language. They are generated from package jobs
// and its comments: `go test ./jobs/schema -update`; the test fails where they or docs/jobs.md differ from the code.
//
// A schema says what one field may be. What fields mean together (cmd or shell, not both; inline contents 256 KiB in all) only
// jobs.Decode checks.
package schema

import "embed"

// Files holds spec.json, result.json, event.json, job.json, submit_reply.json and error.json; and requests.json, which defines all that is
// asked and answered besides, each by its name: requests.json#/$defs/ListRequest.
//
//go:embed *.json
var Files embed.FS
