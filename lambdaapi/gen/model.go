package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// A model is a service as AWS publishes it for its SDKs ("api-2.json").
type model struct {
	Operations map[string]*operation
	Shapes     map[string]*shape
	// refused are the operations that prune has left out.
	refused map[string]*operation
}

type operation struct {
	HTTP struct {
		Method       string `json:"method"`
		RequestURI   string `json:"requestUri"`
		ResponseCode int    `json:"responseCode"`
	} `json:"http"`
	Input  *ref  `json:"input"`
	Output *ref  `json:"output"`
	Errors []ref `json:"errors"`
}

type shape struct {
	Type        string             `json:"type"`
	Members     map[string]*member `json:"members"`
	Required    []string           `json:"required"`
	Payload     string             `json:"payload"`
	Member      *ref               `json:"member"`
	Key         *ref               `json:"key"`
	Value       *ref               `json:"value"`
	Min         *float64           `json:"min"`
	Max         *float64           `json:"max"`
	Pattern     string             `json:"pattern"`
	Enum        []string           `json:"enum"`
	Sensitive   bool               `json:"sensitive"`
	Exception   bool               `json:"exception"`
	EventStream bool               `json:"eventstream"`
	Error       struct {
		Status int `json:"httpStatusCode"`
	} `json:"error"`
	// Sparse lists may hold null: only the overlay says so.
	Sparse bool `json:"sparse"`
}

type ref struct {
	Shape string `json:"shape"`
}

type member struct {
	Shape        string `json:"shape"`
	Location     string `json:"location"` // uri, querystring, header, statusCode; empty: the body
	LocationName string `json:"locationName"`
}

// find asks the go command for the module that holds the model.
func find(module, file string) (string, error) {
	out, err := exec.Command("go", "mod", "download", "-json", module).Output()
	var info struct{ Dir, Error string }
	if json.Unmarshal(out, &info) != nil || info.Dir == "" {
		return "", fmt.Errorf("module %s is not to be had (%s%w): give the model by -model", module, info.Error, errors.Join(err))
	}
	return filepath.Join(info.Dir, file), nil
}

// load reads a model and lays the overlay over it: objects are merged, all else is replaced.
func load(file, overlay string) (*model, error) {
	base, err := read(file)
	if err != nil {
		return nil, err
	}
	over, err := read(overlay)
	if err != nil {
		return nil, err
	}
	joined, err := json.Marshal(merge(base, over))
	if err != nil {
		return nil, err
	}
	m := &model{}
	if err := json.Unmarshal(joined, m); err != nil {
		return nil, fmt.Errorf("%s with %s: %w", file, overlay, err)
	}
	return m, nil
}

func read(file string) (map[string]any, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var tree map[string]any
	if err := json.Unmarshal(data, &tree); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return tree, nil
}

func merge(base, over map[string]any) map[string]any {
	for name, value := range over {
		b, both := base[name].(map[string]any)
		o, objects := value.(map[string]any)
		if both && objects {
			base[name] = merge(b, o)
		} else {
			base[name] = value
		}
	}
	return base
}

// prune keeps the operations for which wanted holds, and the shapes they and their errors reach; the others are refused. Errors of operations that are left
// out stay: a client may be told any of them.
func (m *model) prune(wanted func(name string) bool) error {
	keep := map[string]bool{}
	m.refused = map[string]*operation{}
	for name, o := range m.Operations {
		if !wanted(name) {
			m.refused[name] = o
			delete(m.Operations, name)
			continue
		}
		for _, r := range append(slices.Clone(o.Errors), deref(o.Input, o.Output)...) {
			if err := m.reach(r.Shape, keep); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	for name, s := range m.Shapes {
		if s.Exception {
			keep[name] = true
		}
		if !keep[name] {
			delete(m.Shapes, name)
		}
	}
	return nil
}

func (m *model) reach(name string, seen map[string]bool) error {
	if seen[name] {
		return nil
	}
	s := m.Shapes[name]
	if s == nil {
		return fmt.Errorf("shape %s is missing", name)
	}
	seen[name] = true
	next := deref(s.Member, s.Key, s.Value)
	for _, f := range s.Members {
		next = append(next, ref{f.Shape})
	}
	for _, r := range next {
		if err := m.reach(r.Shape, seen); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func deref(all ...*ref) []ref {
	var some []ref
	for _, r := range all {
		if r != nil {
			some = append(some, *r)
		}
	}
	return some
}

// answered tells which operations are: no layers, capacity providers, durable executions and what belongs to them.
func answered(name string) bool {
	for _, part := range []string{"Layer", "CapacityProvider", "Durable", "ResourcePolicy", "Scaling"} {
		if strings.Contains(name, part) {
			return false
		}
	}
	return true
}
