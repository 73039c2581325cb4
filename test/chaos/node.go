package chaos

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/spf13/pflag"
)

// NodeArg as the first argument makes a program that calls Node a NATS server: this package starts its own program so.
const NodeArg = "nats-node"

// nodeReady is what it prints when it serves.
const nodeReady = "nats-node serves"

// Node runs one server of a cluster, as the rest of the arguments say, until SIGTERM. Every write is synced before it is acknowledged.
func Node(args []string) error {
	f := pflag.NewFlagSet(NodeArg, pflag.ContinueOnError)
	name := f.String("name", "", "the server's name")
	host := f.String("host", "", "address to listen on")
	port := f.Int("port", 0, "where clients connect")
	cluster := f.Int("cluster", 0, "where the other servers connect")
	advertise := f.String("advertise", "", "where the other servers tell each other that it is")
	routes := f.String("routes", "", "the servers of the cluster, as URLs with commas between them")
	store := f.String("store", "", "directory of JetStream")
	if err := f.Parse(args); err != nil {
		return err
	}
	o := &server.Options{
		ServerName: *name, Host: *host, Port: *port, NoSigs: true, JetStream: true, StoreDir: *store, SyncAlways: true, MaxPayload: 2 << 20, PingInterval: 3 * time.Second, MaxPingsOut: 2,
		JetStreamMaxStore: 64 << 30, JetStreamMaxMemory: 1 << 28, // not what happens to be free now
		// Clients know the addresses that they were given, which are the proxies', and hear of no others.
		Cluster: server.ClusterOpts{Name: "chaos", Host: *host, Port: *cluster, Advertise: *advertise, NoAdvertise: true},
	}
	o.Routes = server.RoutesFromStr(strings.Clone(*routes))
	s, err := server.NewServer(o)
	if err != nil {
		return err
	}
	s.SetLoggerV2(stderrLog{}, false, false, false)
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	s.Start()
	if !s.ReadyForConnections(readyWithin) {
		return errors.New("the server did not come up")
	}
	fmt.Println(nodeReady)
	<-stop
	s.Shutdown()
	s.WaitForShutdown()
	return nil
}

// stderrLog prints what the server says.
type stderrLog struct{}

func (l stderrLog) Noticef(f string, v ...any) { l.print("I", f, v) }
func (l stderrLog) Warnf(f string, v ...any)   { l.print("W", f, v) }
func (l stderrLog) Errorf(f string, v ...any)  { l.print("E", f, v) }
func (l stderrLog) Fatalf(f string, v ...any)  { l.print("F", f, v) }
func (stderrLog) Debugf(string, ...any)        {}
func (stderrLog) Tracef(string, ...any)        {}

func (stderrLog) print(level, f string, v []any) {
	fmt.Fprintf(os.Stderr, "%s %s %s\n", time.Now().Format("15:04:05.000"), level, fmt.Sprintf(f, v...))
}

var _ server.Logger = stderrLog{}
