package cluster_test

import (
	"testing"

	"thaw/cluster"
)

// serve starts a server on dir for the test.
func serve(t *testing.T, dir string) *cluster.Server {
	t.Helper()
	s, err := cluster.Serve(t.Context(), cluster.ServerOptions{Dir: dir, Token: token, Warn: func(line string) { t.Log("server:", line) }})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func dial(t *testing.T, url string) *cluster.Conn {
	t.Helper()
	c, err := cluster.Dial(t.Context(), url, token)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestEmbedded(t *testing.T) {
	t.Parallel()
	s := serve(t, t.TempDir())
	t.Cleanup(func() { is(t, s.Close(), nil) })
	suite(t, dial(t, s.URL()))
}
