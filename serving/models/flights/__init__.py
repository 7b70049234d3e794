"""The demo's model: will this flight arrive more than fifteen minutes late?"""
