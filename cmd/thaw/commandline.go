package main

import (
	"reflect"
	"strings"
)

// commandLine gives what kong is to parse, and where in it the flags of all
// verbs are. If the arguments start with a verb it has no other: to describe
// all of them takes kong a millisecond, of which a start has few.
func commandLine(args []string) (root any, g *Globals) {
	full := &cli{}
	if len(args) == 0 {
		return full, &full.Globals
	}
	t := reflect.TypeFor[cli]()
	globals, _ := t.FieldByName("Globals")
	for i := range t.NumField() {
		verb := t.Field(i)
		if verb.Anonymous || strings.ToLower(verb.Name) != args[0] {
			continue
		}
		one := reflect.New(reflect.StructOf([]reflect.StructField{
			{Name: globals.Name, Type: globals.Type, Tag: `embed:""`},
			{Name: verb.Name, Type: verb.Type, Tag: verb.Tag},
		}))
		return one.Interface(), one.Elem().Field(0).Addr().Interface().(*Globals)
	}
	return full, &full.Globals
}
