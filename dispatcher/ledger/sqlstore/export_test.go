package sqlstore

var Listing = listing
