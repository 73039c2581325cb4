package harness

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// redisWithin bounds the wait until a server of Redis serves, and until servers know of each other: only a hang is cut off.
const redisWithin = 2 * time.Minute

// sentinelPatience is after which silence a Sentinel holds a server for down: longer than a loaded machine stands still. A replica that had
// lost sight of it for ten times as long before takes its place no more.
const sentinelPatience = 15 * time.Second

// NodePatience is --cluster-node-timeout, in milliseconds: after which silence the nodes of a cluster hold one of them for down, and take no
// commands any more. No test has one go down, and a disk may stand still for seconds, where each writes what it knows of the others.
const NodePatience = "60000"

// answerWithin bounds a server's answer. go-redis waits 3 s by itself, and then asks again what may have been done.
const answerWithin = time.Minute

// StartRedisCluster starts three nodes that have a third of the slots each, and gives the URL.
func StartRedisCluster(t testing.TB, binary string) string {
	t.Helper()
	var nodes []*Redis
	var clients []*redis.Client
	for range 3 {
		n := StartRedis(t, RedisOptions{Binary: binary, Args: []string{
			"--cluster-enabled", "yes", "--cluster-port", fmt.Sprint(FreePort(t)), "--cluster-node-timeout", NodePatience,
		}})
		nodes, clients = append(nodes, n), append(clients, n.Client(t))
	}
	for i, c := range clients {
		if err := c.ClusterAddSlotsRange(t.Context(), i*5462, min(i*5462+5461, 16383)).Err(); err != nil {
			t.Fatal(err)
		}
		if err := c.Do(t.Context(), "cluster", "set-config-epoch", i+1).Err(); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range nodes[1:] {
		if err := clients[0].Do(t.Context(), "cluster", "meet", "127.0.0.1", n.Port, n.Setting("--cluster-port")).Err(); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range clients {
		untilRedis(t, "a cluster of three", func(ctx context.Context) (string, bool) {
			info := c.ClusterInfo(ctx).Val()
			return info, strings.Contains(info, "cluster_state:ok") && strings.Contains(info, "cluster_known_nodes:3")
		})
	}
	return fmt.Sprintf("%s?addr=%s&addr=%s", nodes[0].URL(), nodes[1].Addr(), nodes[2].Addr())
}

// StartSentinels starts two, which know the server as main and its one replica, and gives the URL.
func StartSentinels(t testing.TB, binary string, of *Redis) string {
	t.Helper()
	var addrs []string
	var clients []*redis.Client
	for range 2 {
		port := FreePort(t)
		file := filepath.Join(t.TempDir(), "sentinel.conf")
		conf := fmt.Sprintf("port %d\nsentinel monitor main 127.0.0.1 %d 2\nsentinel down-after-milliseconds main %d\nsentinel failover-timeout main 5000\n", port, of.Port, sentinelPatience.Milliseconds())
		if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
			t.Fatal(err)
		}
		s := StartRedis(t, RedisOptions{Binary: binary, Port: port, Args: []string{file, "--sentinel"}})
		addrs, clients = append(addrs, s.Addr()), append(clients, s.Client(t))
	}
	for _, c := range clients { // a failover takes both
		untilRedis(t, "a Sentinel that knows the replica and the other Sentinel", func(ctx context.Context) (string, bool) {
			m, err := c.Do(ctx, "sentinel", "master", "main").Result()
			said := fmt.Sprint(m, err)
			return said, strings.Contains(said, "num-slaves:1") && strings.Contains(said, "num-other-sentinels:1")
		})
	}
	return fmt.Sprintf("redis://%s?addr=%s&master_name=main", addrs[0], addrs[1])
}

// Client is a plain client of a server.
func (r *Redis) Client(t testing.TB) *redis.Client {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: r.Addr(), ReadTimeout: answerWithin})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func untilRedis(t testing.TB, what string, is func(context.Context) (said string, ok bool)) {
	t.Helper()
	for end := time.Now().Add(redisWithin); ; time.Sleep(50 * time.Millisecond) {
		said, ok := is(t.Context())
		if ok {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("not %s within %s:\n%s", what, redisWithin, said)
		}
	}
}

var acl = regexp.MustCompile("(?s)```acl\n(.*?)```")

// RedisUsers are the commands of docs/redis.md that make users: the producer acme first, then paddock.
func RedisUsers(t testing.TB) (commands [][]any) {
	t.Helper()
	root, err := Root()
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile(filepath.Join(root, "docs", "redis.md"))
	if err != nil {
		t.Fatal(err)
	}
	rights := acl.FindSubmatch(doc)
	if rights == nil {
		t.Fatal("docs/redis.md has no rights")
	}
	for line := range strings.Lines(string(rights[1])) {
		before, selector, _ := strings.Cut(strings.TrimSpace(line), " (") // a selector is one argument
		var args []any
		for _, w := range strings.Fields(before) {
			args = append(args, w)
		}
		if selector != "" {
			args = append(args, "("+selector)
		}
		commands = append(commands, args)
	}
	return commands
}
