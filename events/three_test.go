package events_test

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"

	"thaw/cluster"
	"thaw/events"
)

// TestThree: events go on when one of three servers is gone.
func TestThree(t *testing.T) {
	t.Parallel()
	host := fmt.Sprintf("127.%d.%d.3", 1+os.Getpid()%250, os.Getpid()/250%250)
	var peers, urls []string
	for range 3 {
		l, err := net.Listen("tcp", host+":0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		peers = append(peers, l.Addr().String())
		l.Close()
	}
	var servers []*cluster.Server
	for n, own := range peers {
		s, err := cluster.Serve(t.Context(), cluster.ServerOptions{Dir: t.TempDir(), Token: token, Name: "s" + strconv.Itoa(n), ClusterListen: own, Peers: peers})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		servers, urls = append(servers, s), append(urls, s.URL())
	}
	q := openAt(t, strings.Join(urls, ","), events.Options{})
	i := &tries{script: byNumber}
	run(t, q, i)
	for n := range 30 {
		put(t, q, event(fmt.Sprint("f", n%3), strconv.Itoa(n)))
	}
	servers[0].Close()
	for n := 30; n < 60; n++ {
		put(t, q, event(fmt.Sprint("f", n%3), strconv.Itoa(n)))
	}
	for n := range 60 {
		id := strconv.Itoa(n)
		eventually(t, "all tries of "+id, func() bool {
			all := i.of(id)
			return len(all) > 0 && byNumber(all[len(all)-1]).Kind == events.Succeeded
		})
	}
}
