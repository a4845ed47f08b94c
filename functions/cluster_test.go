package functions

import (
	"context"
	"errors"
	"testing"

	"thaw/cluster"
)

const token = "a token of the tests"

// server gives a store over an embedded server.
func server(t *testing.T) *Store {
	t.Helper()
	s, err := cluster.Serve(t.Context(), cluster.ServerOptions{Dir: t.TempDir(), Listen: "127.0.0.1:0", Token: token})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	conn, err := cluster.Dial(t.Context(), s.URL(), token)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	records, err := conn.Records(t.Context(), "functions")
	if err != nil {
		t.Fatal(err)
	}
	return NewStore(records)
}

// A function's life on the records of a real server, with a watch beside it.
func TestOnCluster(t *testing.T) {
	s := server(t)
	seen := make(chan string, 100)
	done := errors.New("seen enough")
	ended := make(chan error, 1)
	go func() {
		ended <- s.Watch(context.Background(), func(id ID, f *Function) error {
			switch {
			case id == (ID{}):
				seen <- "synced"
			case f == nil:
				seen <- "deleted"
				return done
			default:
				seen <- f.Latest.State
			}
			return nil
		})
	}()
	expect := func(want string) {
		t.Helper()
		select {
		case got := <-seen:
			if got != want {
				t.Fatalf("watch tells %s, want %s", got, want)
			}
		case <-t.Context().Done():
			t.Fatal("the watch tells nothing")
		}
	}
	expect("synced")
	create(t, s, testID, true)
	expect(Pending)
	f := settle(t, s, testID, built)
	expect(Active)
	if v, err := s.Version(t.Context(), f, "1"); err != nil || v.State != Active {
		t.Errorf("version 1: %v, %v", v, err)
	}
	if err := s.Create(t.Context(), NewFunction(testID, Version{}, testTime), false); !errors.Is(err, ErrConflict) {
		t.Errorf("created twice: %v", err)
	}
	five := 5
	if err := s.Reserve(t.Context(), testID, &five); err != nil {
		t.Fatal(err)
	}
	expect(Active)
	if err := s.Delete(t.Context(), testID); err != nil {
		t.Fatal(err)
	}
	expect("deleted")
	if err := <-ended; !errors.Is(err, done) {
		t.Errorf("watch ended with %v", err)
	}
	if _, err := s.Get(t.Context(), testID); !errors.Is(err, ErrNotFound) {
		t.Errorf("deleted: %v", err)
	}
}
