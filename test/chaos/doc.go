// Package chaos breaks a whole Paddock while clients use it, and then looks whether what was promised held. The system is made of real child
// processes: dispatchers, workers whose machines are processes of this host, one whose machines are real, three NATS servers that are a cluster, Redis, and PostgreSQL
// where the ledger is one. Every connection between them goes through a proxy of this process.
//
// Run is the place to start reading: a fleet (fleet.go) is started, clients (load.go) have thousands of jobs run whose answers are known,
// faults (fault.go; the classes have files of their own) happen meanwhile by a schedule that a seed decides, everything is made whole, and when all jobs have ended the
// invariants are checked (check.go, history.go) against four witnesses: the ledger, the programs themselves (journal.go), the streams,
// and what clients and webhooks' receivers were told.
//
// docs/delivery.md says which promise each of them shows. `make chaos` is a short run; cmd is for long ones.
package chaos
